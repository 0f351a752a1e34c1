/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process that serves a packed image: a program of the node (squashfuse_ll), which gets the image and the
 * connection to the kernel as descriptors, and nothing else of this process.
 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

struct server {
	const struct op *fuse;
	int image, connection;
	int failed; /* takes errno where the server cannot be executed */
	int said;   /* its stderr, until it serves */
};

/*
 * In a mount namespace of its own, which does not hold the image's mount: that must end without it.  Signals stay
 * ignored, as in the holder: what a scheduler sends is for the ranks, which still read the image.
 */
static int become_server(const struct server *s, struct fault *f)
{
	char image[32], connection[32];
	char *argv[] = {(char *)s->fuse->word[4], "-f", image, connection, NULL};
	char *environment[] = {"PATH=/usr/bin:/bin", "LC_ALL=C", NULL};

	if (unshare(CLONE_NEWNS) < 0 || chdir("/") < 0 || dup2(s->said, STDERR_FILENO) < 0)
		return -1;
	descriptors_keep(s->image, s->connection, s->failed);
	if (fcntl(s->image, F_SETFD, 0) < 0 || fcntl(s->connection, F_SETFD, 0) < 0 || privileges_drop(NULL, f) < 0)
		return -1;
	signal(SIGTERM, SIG_IGN);
	snprintf(image, sizeof image, "/proc/self/fd/%d", s->image);
	snprintf(connection, sizeof connection, "/dev/fd/%d", s->connection); /* as mount point: fuse(3), fuse_session_mount */
	return execve(argv[0], argv, environment);
}

/*
 * Start the server of a connection that is mounted already; its pidfd, once its program runs.  *said is then the end
 * to read what it writes to stderr.  It is no child to wait for: the holder ignores SIGCHLD.
 */
int server_start(const struct op *fuse, int image, int connection, int *said, struct fault *f)
{
	struct server server = {.fuse = fuse, .image = image, .connection = connection};
	int failed[2], words[2], error = 0, pidfd = -1;
	pid_t child;

	if (pipe2(failed, O_CLOEXEC) < 0 || pipe2(words, O_CLOEXEC | O_NONBLOCK) < 0)
		return fail_errno(f, "mount", "pipe");
	server.failed = failed[1];
	server.said = words[1];
	child = fork();
	if (child == 0) {
		error = become_server(&server, f) < 0 ? errno : 0;
		if (write(server.failed, &error, sizeof error) < 0)
			_exit(EXIT_HPCPOD);
		_exit(EXIT_CANNOT_EXECUTE);
	}
	close(failed[1]);
	close(words[1]);
	if (child < 0 || (pidfd = sys_pidfd_open(child)) < 0)
		return fail_errno(f, "mount", "%s", fuse->word[4]);
	while (read(failed[0], &error, sizeof error) < 0 && errno == EINTR)
		;
	close(failed[0]);
	*said = words[0];
	if (!error)
		return pidfd;
	errno = error;
	fail_errno(f, "mount", "%s", fuse->word[4]);
	fault_hint(f, "squashfuse must be on this node; hpcpod run --rootfs=dir does without it");
	return -1;
}
