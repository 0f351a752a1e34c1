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
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* A pod whose members never come ends by itself; a scheduler that tracks processes kills it with the step. */
enum { LINGER_MS = 60000 };

struct holder {
	int runtime, fifo, epoll;
	long expected, joined, present;
	char name[200], hidden[40];
};

static int publish(struct holder *h, const char *plan, struct fault *f)
{
	char path[256], final[256], pid[16];

	snprintf(pid, sizeof pid, "%d", getpid());
	snprintf(h->hidden, sizeof h->hidden, "pods/.%d", getpid());
	if (mkdirat(h->runtime, h->hidden, 0700) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), h->hidden);
	snprintf(path, sizeof path, "%s/members", h->hidden);
	if (mkfifoat(h->runtime, path, 0600) < 0 ||
	    /* Also for writing: a FIFO without writers would always be readable. */
	    (h->fifo = openat(h->runtime, path, O_RDWR | O_NONBLOCK | O_CLOEXEC)) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), path);
	snprintf(path, sizeof path, "%s/record", h->hidden);
	if (linkat(h->runtime, plan, h->runtime, path, 0) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), path);
	snprintf(path, sizeof path, "%s/holder", h->hidden);
	if (symlinkat(pid, h->runtime, path) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), path);
	snprintf(final, sizeof final, "pods/%s", h->name);
	if (renameat(h->runtime, h->hidden, h->runtime, final) < 0)
		return fail_errno(f, "pod", "%s/%s", runtime_path(), final);
	return 0;
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

/* Until nobody is here and nobody is expected. */
static void keep(struct holder *h)
{
	bool open = true;

	for (;;) {
		struct epoll_event events[64];
		int n = epoll_wait(h->epoll, events, 64, h->present ? -1 : open ? LINGER_MS : 0);

		for (int i = 0; i < n; i++) {
			if (events[i].data.fd == h->fifo)
				continue;
			close(events[i].data.fd); /* leaves the epoll set too */
			h->present--;
		}
		greet(h);
		if (h->present > 0 || (n < 0 && errno == EINTR))
			continue;
		if (!open)
			return;
		if (n == 0 || (h->expected && h->joined >= h->expected)) {
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

/* The holder must not keep the ranks' output pipes open, or srun waits for it instead of for them. */
static int detach(int runtime, int report, struct fault *f)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int first = runtime < report ? runtime : report, second = runtime < report ? report : runtime;

	if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
		return fail_errno(f, "pod", "/dev/null");
	if (first > 3)
		sys_close_range(3, (unsigned)first - 1);
	if (second > first + 1)
		sys_close_range((unsigned)first + 1, (unsigned)second - 1);
	sys_close_range((unsigned)second + 1, ~0U);
	for (int signal = 1; signal < NSIG; signal++)
		sigaction(signal, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
	raise_limits();
	prctl(PR_SET_NAME, "hpcpod-holder");
	return 0;
}

/* In the grandchild: make the pod, tell the creator, stay. */
static void hold(struct holder *h, const char *plan, const struct record *record, int report)
{
	struct fault fault = {0};
	struct epoll_event event = {.events = EPOLLIN};

	if (detach(h->runtime, report, &fault) == 0 && pod_make(record, &fault) == 0 && publish(h, plan, &fault) == 0) {
		h->epoll = epoll_create1(EPOLL_CLOEXEC);
		event.data.fd = h->fifo;
		if (h->epoll < 0 || epoll_ctl(h->epoll, EPOLL_CTL_ADD, h->fifo, &event) < 0)
			fail_errno(&fault, "pod", "epoll");
		else
			privileges_drop(NULL, &fault);
	}
	if (write(report, &fault, sizeof fault) < 0 || fault.code) {
		retire(h->runtime, h->name, h->hidden);
		remove_directory(h->runtime, h->hidden);
		_exit(EXIT_HPCPOD);
	}
	close(report);
	keep(h);
	_exit(0);
}

/* Two forks: the holder must not be a child that the user's program could wait for, nor be in its session. */
int pod_hold(int runtime, const char *name, const char *plan, const struct record *record, const struct step *step,
             struct fault *f)
{
	struct holder holder = {.runtime = runtime, .fifo = -1, .expected = step->local_ntasks};
	char stale[40];
	int report[2];
	ssize_t got;
	pid_t child;

	snprintf(holder.name, sizeof holder.name, "%s", name);
	snprintf(stale, sizeof stale, "pods/.%d", getpid());
	retire(runtime, name, stale);
	if (pipe2(report, O_CLOEXEC) < 0)
		return fail_errno(f, "pod", "pipe");
	child = fork();
	if (child == 0) {
		setsid();
		close(report[0]);
		child = fork();
		if (child == 0)
			hold(&holder, plan, record, report[1]);
		_exit(child < 0);
	}
	close(report[1]);
	if (child < 0)
		return fail_errno(f, "pod", "fork");
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	got = read(report[0], f, sizeof *f);
	close(report[0]);
	if (got != (ssize_t)sizeof *f)
		return fail(f, EXIT_HPCPOD, "pod", "the pod's holder died while it made the pod");
	return f->code ? -1 : 0;
}
