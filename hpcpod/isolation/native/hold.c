/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The holder: a process that keeps a pod's namespaces while ranks come and go.
 *
 * It is no rank and no rank's child, so no rank's end can take the pod away.  Members announce themselves by
 * writing their pid into its FIFO (which also tells them that it lives: with no reader, opening fails), it
 * watches them by pidfd, and it ends when all expected members have been there and are gone.
 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A pod whose members never come ends by itself; a scheduler that tracks processes kills it with the step. */
enum { LINGER_MS = 60000, GATHER_MS = 5 };

struct holder {
	int runtime, fifo, epoll;
	int report, lock; /* pipe to the creator; its lock, held here too until others can see the pod */
	long expected, joined, present;
	char name[200], hidden[40];
	bool published;
};

static volatile sig_atomic_t ending;

static void note_ending(int signal)
{
	(void)signal;
	ending = 1;
}

static void remove_directory(int runtime, const char *directory)
{
	static const char *const entries[] = {"members", "record", "holder"};
	char path[256];

	for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
		snprintf(path, sizeof path, "%s/%s", directory, entries[i]);
		unlinkat(runtime, path, 0);
	}
	unlinkat(runtime, directory, AT_REMOVEDIR);
}

/* One rename takes the pod out of sight; what is left of a killed holder goes the same way. */
static void retire(int runtime, const char *name, const char *hidden)
{
	char path[256];

	snprintf(path, sizeof path, "pods/%s", name);
	if (renameat(runtime, path, runtime, hidden) == 0)
		remove_directory(runtime, hidden);
}

/* The words that the pod was made from: the plan's own file may have been replaced meanwhile. */
static int write_record(const struct holder *h, const struct record *record, const char *path)
{
	int fd = openat(h->runtime, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	ssize_t written = fd < 0 ? -1 : write(fd, record->bytes, record->size);

	if (written >= 0 && written != (ssize_t)record->size)
		errno = ENOSPC;
	if (fd >= 0)
		close(fd);
	return written == (ssize_t)record->size ? 0 : -1;
}

static int publish(struct holder *h, const struct record *record, struct fault *f)
{
	char path[256], final[256], pid[16];

	snprintf(pid, sizeof pid, "%d", getpid());
	snprintf(h->hidden, sizeof h->hidden, "pods/.%d", getpid());
	remove_directory(h->runtime, h->hidden); /* of a killed holder that had the same pid */
	if (mkdirat(h->runtime, h->hidden, 0700) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), h->hidden);
	snprintf(path, sizeof path, "%s/members", h->hidden);
	if (mkfifoat(h->runtime, path, 0600) < 0 ||
	    /* Also for writing: a FIFO without writers would always be readable. */
	    (h->fifo = openat(h->runtime, path, O_RDWR | O_NONBLOCK | O_CLOEXEC)) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), path);
	snprintf(path, sizeof path, "%s/record", h->hidden);
	if (write_record(h, record, path) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), path);
	snprintf(path, sizeof path, "%s/holder", h->hidden);
	if (symlinkat(pid, h->runtime, path) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), path);
	snprintf(final, sizeof final, "pods/%s", h->name);
	if (renameat(h->runtime, h->hidden, h->runtime, final) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), final);
	h->published = true;
	return 0;
}

static void greet(struct holder *h)
{
	pid_t pids[64];
	ssize_t size;

	while ((size = read(h->fifo, pids, sizeof pids)) > 0)
		for (size_t i = 0; i < (size_t)size / sizeof *pids; i++) {
			struct epoll_event event = {.events = EPOLLIN};
			int member = sys_pidfd_open(pids[i]);

			h->joined++;
			event.data.fd = member;
			if (member >= 0 && epoll_ctl(h->epoll, EPOLL_CTL_ADD, member, &event) == 0)
				h->present++;
		}
}

/*
 * Ranks come, and go, many at a time: to be woken for each would take from them the cores that they start on.  A
 * FIFO holds the pids of 16384 meanwhile.
 */
static void let_them_gather(void)
{
	nanosleep(&(struct timespec){.tv_nsec = GATHER_MS * 1000000L}, NULL);
}

/* Until nobody is here and nobody is expected, or until nobody is here and the scheduler asked to end. */
static void keep(struct holder *h)
{
	bool open = true;

	for (;;) {
		struct epoll_event events[64];
		int n = epoll_wait(h->epoll, events, 64, h->present ? -1 : open ? LINGER_MS : 0);

		if (n > 0 && open)
			let_them_gather();
		for (int i = 0; i < n; i++) {
			if (events[i].data.fd == h->fifo)
				continue;
			close(events[i].data.fd); /* leaves the epoll set too */
			h->present--;
		}
		greet(h);
		if (h->present > 0 || (n < 0 && errno == EINTR && !ending))
			continue;
		if (!open)
			return;
		if (n == 0 || ending || (h->expected && h->joined >= h->expected)) {
			/* A rank may have found the pod a moment ago: look into the FIFO once more when hidden. */
			retire(h->runtime, h->name, h->hidden);
			open = false;
		}
	}
}

static void raise_limits(void)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max; /* a pidfd for each of the node's ranks */
		setrlimit(RLIMIT_NOFILE, &files);
	}
}

/* Close everything from 3 on but these three. */
static void keep_only(int a, int b, int c)
{
	int kept[] = {a, b, c};
	int next = 3;

	for (;;) {
		int lowest = INT_MAX;

		for (size_t i = 0; i < 3; i++)
			if (kept[i] >= next && kept[i] < lowest)
				lowest = kept[i];
		if (lowest == INT_MAX)
			break;
		if (lowest > next)
			sys_close_range((unsigned)next, (unsigned)lowest - 1);
		next = lowest + 1;
	}
	sys_close_range((unsigned)next, ~0U);
}

/*
 * What a scheduler sends is meant for the ranks, which may go on for a while and be joined by others.  SIGPIPE:
 * the creator may be gone when the holder reports.
 */
static void take_signals(void)
{
	static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS, SIGTRAP};
	sigset_t none;

	for (int signal = 1; signal < NSIG; signal++)
		sigaction(signal, &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
	for (size_t i = 0; i < sizeof fatal / sizeof fatal[0]; i++)
		sigaction(fatal[i], &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
	sigaction(SIGTERM, &(struct sigaction){.sa_handler = note_ending}, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* The holder must not keep the ranks' output pipes open, or srun waits for it instead of for them. */
static int detach(const struct holder *h, struct fault *f)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
		return fail_errno(f, "pod", "/dev/null");
	keep_only(h->runtime, h->report, h->lock);
	take_signals();
	raise_limits();
	prctl(PR_SET_NAME, "hpcpod-holder");
	return 0;
}

static int watch_members(struct holder *h, struct fault *f)
{
	struct epoll_event event = {.events = EPOLLIN, .data.fd = h->fifo};

	h->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (h->epoll < 0 || epoll_ctl(h->epoll, EPOLL_CTL_ADD, h->fifo, &event) < 0)
		return fail_errno(f, "pod", "epoll");
	return 0;
}

/*
 * In the grandchild: make the pod, tell the creator, stay.  A creator that was killed meanwhile changes nothing:
 * the pod is as good for the others.
 */
static void hold(struct holder *h, const struct record *record)
{
	struct fault fault = {0};
	bool made = detach(h, &fault) == 0 && pod_make(record, &fault) == 0 && publish(h, record, &fault) == 0 &&
	            watch_members(h, &fault) == 0 && privileges_drop(NULL, &fault) == 0;

	if (!made && h->published)
		retire(h->runtime, h->name, h->hidden);
	else if (!made && h->hidden[0])
		remove_directory(h->runtime, h->hidden);
	close(h->lock);
	if ((write(h->report, &fault, sizeof fault) < 0 && errno != EPIPE) || !made)
		_exit(EXIT_HPCPOD);
	close(h->report);
	keep(h);
	_exit(0);
}

static void fork_holder(struct holder *h, const struct record *record)
{
	struct fault fault = {0};
	pid_t child;

	setsid();
	child = fork();
	if (child == 0)
		hold(h, record);
	if (child < 0 && fail_errno(&fault, "pod", "fork") < 0 && write(h->report, &fault, sizeof fault) < 0)
		_exit(EXIT_HPCPOD);
	_exit(0);
}

/*
 * Make a pod of this name and leave a process that holds it.  lock: what the caller holds so that nobody else makes
 * the same pod; the holder keeps it until the pod can be found, even when the caller is killed.
 * Two forks: the holder must not be a child that the user's program could wait for, nor be in its session.
 */
int pod_hold(int runtime, int lock, const char *name, const struct record *record, const struct step *step,
             struct fault *f)
{
	struct holder holder = {.runtime = runtime, .lock = lock, .fifo = -1, .expected = step->local_ntasks};
	char stale[40];
	int report[2];
	ssize_t got;
	pid_t child;

	snprintf(holder.name, sizeof holder.name, "%s", name);
	snprintf(stale, sizeof stale, "pods/.%d", getpid());
	remove_directory(runtime, stale); /* of a killed one that had this pid: a rename needs the name free */
	retire(runtime, name, stale);
	if (pipe2(report, O_CLOEXEC) < 0)
		return fail_errno(f, "pod", "pipe");
	holder.report = report[1];
	child = fork();
	if (child == 0) {
		close(report[0]);
		fork_holder(&holder, record);
	}
	close(report[1]);
	if (child < 0)
		return fail_errno(f, "pod", "fork");
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	do
		got = read(report[0], f, sizeof *f);
	while (got < 0 && errno == EINTR);
	close(report[0]);
	if (got != (ssize_t)sizeof *f)
		return fail(f, EXIT_HPCPOD, SLUG_KILLED, "the pod's holder was killed while it made the pod");
	return f->code ? -1 : 0;
}
