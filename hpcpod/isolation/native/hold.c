/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The holder: a process that keeps namespaces while others come and go: a pod's for its ranks, those of an image's
 * mount for its pods (fuse.c).
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
	const struct kept *kept;
	int runtime, fifo, epoll;
	int report, lock; /* pipe to the creator; its lock, held here too until others can see what is kept */
	int vital;        /* pidfd of a process without which what is kept is worth nothing, or -1 */
	long joined, present;
	char hidden[40];
	bool published;
};

static volatile sig_atomic_t ending;

static void note_ending(int signal)
{
	(void)signal;
	ending = 1;
}

/* By descriptor: what took the name, a link say, must not lead elsewhere. */
static void remove_directory(int runtime, const char *path)
{
	static const char *const entries[] = {"members", "record", "holder"};
	int directory = openat(runtime, path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	if (directory < 0) {
		unlinkat(runtime, path, 0);
		return;
	}
	for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++)
		unlinkat(directory, entries[i], 0);
	close(directory);
	unlinkat(runtime, path, AT_REMOVEDIR);
}

/* One rename takes it out of sight; what is left of a killed holder goes the same way. */
static void retire(int runtime, const struct kept *kept, const char *hidden)
{
	char path[256];

	snprintf(path, sizeof path, "%s/%s", kept->room, kept->name);
	if (renameat(runtime, path, runtime, hidden) == 0)
		remove_directory(runtime, hidden);
}

/* The words that the pod was made from: the plan's own file may have been replaced meanwhile. */
static int write_record(const struct holder *h, const char *path)
{
	const struct record *record = h->kept->record;
	int fd = openat(h->runtime, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	ssize_t written = fd < 0 ? -1 : write(fd, record->bytes, record->size);

	if (written >= 0 && written != (ssize_t)record->size)
		errno = ENOSPC;
	if (fd >= 0)
		close(fd);
	return written == (ssize_t)record->size ? 0 : -1;
}

static int publish(struct holder *h, struct fault *f)
{
	char path[256], final[256], pid[16];

	snprintf(pid, sizeof pid, "%d", getpid());
	snprintf(h->hidden, sizeof h->hidden, "%s/.%d", h->kept->room, getpid());
	remove_directory(h->runtime, h->hidden); /* of a killed holder that had the same pid */
	if (mkdirat(h->runtime, h->hidden, 0700) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), h->hidden);
	snprintf(path, sizeof path, "%s/members", h->hidden);
	if (mkfifoat(h->runtime, path, 0600) < 0 ||
	    /* Also for writing: a FIFO without writers would always be readable. */
	    (h->fifo = openat(h->runtime, path, O_RDWR | O_NONBLOCK | O_CLOEXEC)) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), path);
	snprintf(path, sizeof path, "%s/record", h->hidden);
	if (h->kept->recorded && write_record(h, path) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), path);
	snprintf(path, sizeof path, "%s/holder", h->hidden);
	if (symlinkat(pid, h->runtime, path) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), path);
	snprintf(final, sizeof final, "%s/%s", h->kept->room, h->kept->name);
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

/*
 * Until nobody is here and nobody is expected, or until nobody is here and the scheduler asked to end; or until what
 * is kept is dead.
 */
static void keep(struct holder *h)
{
	bool open = true, dead = false;

	for (;;) {
		struct epoll_event events[64];
		int n = epoll_wait(h->epoll, events, 64, h->present ? -1 : open ? h->kept->linger_ms : 0);

		if (n > 0 && open)
			let_them_gather();
		for (int i = 0; i < n; i++) {
			if (events[i].data.fd == h->fifo)
				continue;
			dead |= events[i].data.fd == h->vital;
			close(events[i].data.fd); /* leaves the epoll set too */
			h->present--;
		}
		if (dead)
			break;
		greet(h);
		if (h->present > 0 || (n < 0 && errno == EINTR && !ending))
			continue;
		if (!open)
			return;
		if (n == 0 || ending || (h->kept->expected && h->joined >= h->kept->expected)) {
			/* A rank may have found the pod a moment ago: look into the FIFO once more when hidden. */
			retire(h->runtime, h->kept, h->hidden);
			open = false;
		}
	}
	if (open)
		retire(h->runtime, h->kept, h->hidden);
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
void descriptors_keep(int a, int b, int c)
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
	descriptors_keep(h->runtime, h->report, h->lock);
	take_signals();
	raise_limits();
	prctl(PR_SET_NAME, h->kept->process);
	return 0;
}

static int watch_members(struct holder *h, struct fault *f)
{
	struct epoll_event event = {.events = EPOLLIN, .data.fd = h->fifo};
	struct epoll_event death = {.events = EPOLLIN, .data.fd = h->vital};

	h->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (h->epoll < 0 || epoll_ctl(h->epoll, EPOLL_CTL_ADD, h->fifo, &event) < 0 ||
	    (h->vital >= 0 && epoll_ctl(h->epoll, EPOLL_CTL_ADD, h->vital, &death) < 0))
		return fail_errno(f, "pod", "epoll");
	return 0;
}

/*
 * In the grandchild: make the pod, tell the creator, stay.  A creator that was killed meanwhile changes nothing:
 * the pod is as good for the others.
 */
static void make_and_stay(struct holder *h)
{
	struct fault fault = {0};
	bool made = detach(h, &fault) == 0 && h->kept->make(h->runtime, h->kept->record, &h->vital, &fault) == 0 &&
	            publish(h, &fault) == 0 && watch_members(h, &fault) == 0 && privileges_drop(NULL, &fault) == 0;

	if (!made && h->published)
		retire(h->runtime, h->kept, h->hidden);
	else if (!made && h->hidden[0])
		remove_directory(h->runtime, h->hidden);
	close(h->lock);
	if ((write(h->report, &fault, sizeof fault) < 0 && errno != EPIPE) || !made)
		_exit(EXIT_HPCPOD);
	close(h->report);
	keep(h);
	_exit(0);
}

static void fork_holder(struct holder *h)
{
	struct fault fault = {0};
	pid_t child;

	setsid();
	child = fork();
	if (child == 0)
		make_and_stay(h);
	if (child < 0 && fail_errno(&fault, "pod", "fork") < 0 && write(h->report, &fault, sizeof fault) < 0)
		_exit(EXIT_HPCPOD);
	_exit(0);
}

/*
 * Make what is to be kept and leave a process that holds it.  lock: what the caller holds so that nobody else makes
 * the same; the holder keeps it until what it made can be found, even when the caller is killed.
 * Two forks: the holder must not be a child that the user's program could wait for, nor be in its session.
 */
int hold(int runtime, int lock, const struct kept *kept, struct fault *f)
{
	struct holder holder = {.kept = kept, .runtime = runtime, .lock = lock, .fifo = -1, .vital = -1};
	char stale[40];
	int report[2];
	ssize_t got;
	pid_t child;

	snprintf(stale, sizeof stale, "%s/.%d", kept->room, getpid());
	remove_directory(runtime, stale); /* of a killed one that had this pid: a rename needs the name free */
	retire(runtime, kept, stale);
	if (pipe2(report, O_CLOEXEC) < 0)
		return fail_errno(f, "pod", "pipe");
	holder.report = report[1];
	child = fork();
	if (child == 0) {
		close(report[0]);
		fork_holder(&holder);
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
		return fail(f, EXIT_HPCPOD, SLUG_KILLED, "%s was killed while it made what it is to hold", kept->process);
	return f->code ? -1 : 0;
}

/* The pod of this record: its image taken from the mount that all of the user's pods share, if it is one. */
static int make_pod(int runtime, const struct record *record, int *vital, struct fault *f)
{
	int tree;

	(void)vital;
	return fuse_take(runtime, record, &tree, f) < 0 ? -1 : pod_make(record, tree, f);
}

int pod_hold(int runtime, int lock, const char *name, const struct record *record, const struct step *step,
             struct fault *f)
{
	const struct kept pod = {.room = "pods", .name = name, .process = "hpcpod-holder", .record = record,
	                         .recorded = true, .expected = step->local_ntasks, .linger_ms = LINGER_MS,
	                         .make = make_pod};

	return hold(runtime, lock, &pod, f);
}
