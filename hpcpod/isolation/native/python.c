/* SPDX-License-Identifier: Apache-2.0 */
/* The other half of hpcpod: the Python beside this program, in the installation that it belongs to. */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* DIRECTORY/python3 for the DIRECTORY of this executable: a virtual environment's, or /usr/bin's. */
static int find_python(char *out, size_t size, struct fault *f)
{
	char self[PATH_MAX], *slash;
	ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);

	if (length < 0)
		return fail_errno(f, "installation", "/proc/self/exe");
	self[length] = '\0';
	slash = strrchr(self, '/');
	if (slash)
		*slash = '\0';
	if ((size_t)snprintf(out, size, "%s/python3", self) >= size) {
		errno = ENAMETOOLONG;
		return fail_errno(f, "installation", "%s", self);
	}
	return 0;
}

/*
 * The preparing rank works for all ranks of the node, which wait for it: it may use all of the step's cores, not
 * only its own.  The kernel cuts the mask down to the cpuset.
 */
static void use_all_cores(void)
{
	cpu_set_t all;

	memset(&all, 0xff, sizeof all);
	sched_setaffinity(0, sizeof all, &all);
}

static int python_fault(const char *python, struct fault *f)
{
	fail_errno(f, "installation", "%s", python);
	fault_hint(f, "every user must be able to reach it: is it a link into somebody's home directory, or was it installed with umask 077?");
	return -1;
}

/*
 * A signal that ends this process while Python prepares: Python is told, and waited for, so that nothing half-made is
 * left when the command is over.  Who asks twice is not kept waiting.
 */
static const int endings[] = {SIGHUP, SIGINT, SIGTERM};
enum { ENDINGS = sizeof endings / sizeof endings[0] };
static volatile sig_atomic_t ended_by;
static volatile pid_t preparing;
static bool no_term;

/* By SIGTERM, as Python that has hardly begun would show a traceback for SIGINT; unless that one is ignored. */
static void hand_on(int number)
{
	if (ended_by) {
		sigaction(number, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
		raise(number);
		return;
	}
	ended_by = number;
	if (preparing > 0)
		kill(preparing, no_term ? number : SIGTERM);
}

/* Blocks the endings, so that none comes before `preparing` is known; the mask that was goes to *mask. */
static void take_endings(struct sigaction *before, sigset_t *mask)
{
	sigset_t all;

	sigemptyset(&all);
	for (int i = 0; i < ENDINGS; i++)
		sigaddset(&all, endings[i]);
	sigprocmask(SIG_BLOCK, &all, mask);
	for (int i = 0; i < ENDINGS; i++) {
		sigaction(endings[i], NULL, &before[i]);
		no_term = before[i].sa_handler == SIG_IGN; /* SIGTERM is the last */
		if (before[i].sa_handler != SIG_IGN) /* what is ignored stays so, here and in Python */
			sigaction(endings[i], &(struct sigaction){.sa_handler = hand_on}, NULL);
	}
}

static void give_endings_back(const struct sigaction *before)
{
	for (int i = 0; i < ENDINGS; i++)
		sigaction(endings[i], &before[i], NULL);
}

static void run_child(const char *python, const char *const *words)
{
	size_t count = 0;
	const char **argv;
	int null = open("/dev/null", O_RDONLY);

	while (words[count])
		count++;
	argv = calloc(count + 5, sizeof *argv);
	/* Its output is not the program's: what it says goes to stderr, and the rank's stdin stays unread. */
	if (!argv || null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) {
		struct fault f;

		fail_errno(&f, "installation", "standard streams of the preparation");
		fault_print(&f);
		_exit(EXIT_HPCPOD);
	}
	/* Nobody would wait for what it does; it cleans up on this signal. */
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	use_all_cores();
	argv[0] = python;
	argv[1] = "-I"; /* a file named hpcpod.py in the current directory must not be imported */
	argv[2] = "-X";
	argv[3] = "utf8"; /* names are bytes: what the locale makes of them must not change them in the record */
	memcpy(argv + 4, words, count * sizeof *words);
	execv(python, (char *const *)argv);
	_exit(EXIT_NOT_FOUND);
}

static int wait_for(pid_t child, int *status)
{
	pid_t ended;

	do
		ended = waitpid(child, status, 0);
	while (ended < 0 && errno == EINTR);
	return ended < 0 ? -1 : 0;
}

/* Run `python3 -I words…`; what fails there has been said there, so the fault's text stays empty. */
int python_run(const char *const *words, struct fault *f)
{
	struct sigaction plain = {.sa_handler = SIG_DFL}, before, ends[ENDINGS];
	char python[PATH_MAX];
	sigset_t mask;
	pid_t child;
	int status = 0, waited;

	if (find_python(python, sizeof python, f) < 0)
		return -1;
	sigaction(SIGCHLD, &plain, &before); /* where it is ignored, no exit status is kept */
	take_endings(ends, &mask);
	child = fork();
	if (child == 0) {
		give_endings_back(ends);
		sigprocmask(SIG_SETMASK, &mask, NULL);
		run_child(python, words);
	}
	preparing = child;
	sigprocmask(SIG_SETMASK, &mask, NULL);
	waited = child < 0 ? -1 : wait_for(child, &status);
	preparing = 0;
	give_endings_back(ends);
	if (ended_by)
		raise(ended_by);
	if (waited < 0)
		fail_errno(f, "installation", "%s", python);
	sigaction(SIGCHLD, &before, NULL);
	if (waited < 0)
		return -1;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_NOT_FOUND) {
		errno = access(python, X_OK) < 0 ? errno : ENOEXEC;
		return python_fault(python, f);
	}
	if (WIFEXITED(status))
		return fail(f, WEXITSTATUS(status), "", "%s", "");
	return fail(f, EXIT_HPCPOD, SLUG_KILLED, "preparing was ended by signal %d", WTERMSIG(status));
}

/* Become `python3 -I -m hpcpod argv…`. */
int python_exec(char *const *argv, struct fault *f)
{
	char python[PATH_MAX];
	size_t count = 0;
	const char **words;

	if (find_python(python, sizeof python, f) < 0)
		return -1;
	while (argv[count])
		count++;
	words = calloc(count + 5, sizeof *words);
	if (!words)
		return fail_errno(f, "installation", "%s", python);
	words[0] = python;
	words[1] = "-I";
	words[2] = "-m";
	words[3] = "hpcpod";
	memcpy(words + 4, argv, count * sizeof *argv);
	execv(python, (char *const *)words);
	return python_fault(python, f);
}
