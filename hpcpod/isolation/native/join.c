/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* What is kept in this room under this name, if there is such a thing.  Its holder may be dead: holder_tell tells. */
bool holder_find(int runtime, const char *room, const char *name, struct pod *pod)
{
	char path[256], pid[16];
	ssize_t length;

	*pod = (struct pod){.directory = -1, .holder = -1};
	snprintf(path, sizeof path, "%s/%s", room, name);
	pod->directory = openat(runtime, path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (pod->directory < 0)
		return false;
	length = readlinkat(pod->directory, "holder", pid, sizeof pid - 1);
	if (length > 0) {
		pid[length] = '\0';
		pod->pid = (pid_t)strtol(pid, NULL, 10);
		pod->holder = sys_pidfd_open(pod->pid);
	}
	if (pod->holder >= 0)
		return true;
	pod_forget(pod);
	return false;
}

bool pod_find(int runtime, const char *name, struct pod *pod)
{
	struct fault ignored;

	if (!holder_find(runtime, "pods", name, pod))
		return false;
	if (record_read(pod->directory, "record", &pod->record, &ignored) == 0)
		return true;
	pod_forget(pod);
	return false;
}

static int open_members(const struct pod *pod)
{
	return openat(pod->directory, "members", O_WRONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
}

/* Whether the holder lives: a FIFO without a reader cannot be opened for writing (ENXIO, fifo(7)). */
bool pod_is_held(const struct pod *pod)
{
	int fifo = open_members(pod);

	if (fifo >= 0)
		close(fifo);
	return fifo >= 0;
}

/*
 * Tell the holder that this process is a member.  The pidfd was opened before the FIFO was found to have a reader,
 * so the pid was the holder's own at that time and no later process's with the same number.
 */
bool holder_tell(const struct pod *pod)
{
	pid_t self = getpid();
	struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
	int fifo = open_members(pod);
	bool told;

	if (fifo < 0)
		return false;
	sigaction(SIGPIPE, &ignore, &before); /* the holder may end between open and write */
	told = write(fifo, &self, sizeof self) == (ssize_t)sizeof self;
	sigaction(SIGPIPE, &before, NULL);
	close(fifo);
	return told;
}

bool pod_join(const struct pod *pod)
{
	return holder_tell(pod) && setns(pod->holder, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC) == 0;
}

void pod_forget(struct pod *pod)
{
	if (pod->directory >= 0)
		close(pod->directory);
	if (pod->holder >= 0)
		close(pod->holder);
	record_free(&pod->record);
	*pod = (struct pod){.directory = -1, .holder = -1};
}
