/* SPDX-License-Identifier: Apache-2.0 */
/* The run-time directory: node-local memory, the user's own.  The rule is hpcpod/config.py's. */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ATTEMPTS = 10, ROOM_BELOW = 512 };

static char runtime[PATH_MAX];

const char *runtime_path(void)
{
	return runtime;
}

/* A descriptor of the directory if it is ours alone; O_NOFOLLOW, since /dev/shm is open to all. */
static int open_own(const char *path, bool create)
{
	struct stat status;
	int fd;

	fd = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT && create && (mkdir(path, 0700) == 0 || errno == EEXIST))
		fd = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -1;
	if (fstat(fd, &status) < 0 || status.st_uid != getuid() || (status.st_mode & 077)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Why the directory that the user named is not ours alone; errno is open_own()'s. */
static void say_why(const char *path, struct fault *f)
{
	struct stat status;

	if (lstat(path, &status) < 0)
		fail_errno(f, "store-unusable", "run-time directory %.600s: cannot be made", path);
	else if (!S_ISDIR(status.st_mode))
		fail(f, EXIT_HPCPOD, "store-unusable", "run-time directory %.600s: not a directory", path);
	else if (status.st_uid != getuid())
		fail(f, EXIT_HPCPOD, "store-unusable", "run-time directory %.600s: of uid %u, expected %u, who runs this", path,
		     status.st_uid, getuid());
	else
		fail(f, EXIT_HPCPOD, "store-unusable", "run-time directory %.600s: mode %04o, expected 0700: others could enter",
		     path, status.st_mode & 07777);
	fault_hint(f, "choose another with HPCPOD_RUNTIME, on tmpfs");
}

int runtime_open(struct fault *f)
{
	const char *given = getenv("HPCPOD_RUNTIME");
	int fd;

	if (given && *given) {
		/* Names of files below it must fit too: a path that was cut would be another file's. */
		bool fits = (size_t)snprintf(runtime, sizeof runtime, "%s", given) < sizeof runtime - ROOM_BELOW;

		fd = fits ? open_own(runtime, true) : -1;
		if (fd >= 0)
			return fd;
		if (!fits)
			errno = ENAMETOOLONG;
		say_why(given, f);
		return -1;
	}
	snprintf(runtime, sizeof runtime, "/run/hpcpod/%u", getuid());
	fd = open_own(runtime, false);
	for (int i = 0; fd < 0 && i < ATTEMPTS; i++) {
		int length = snprintf(runtime, sizeof runtime, "/dev/shm/hpcpod-%u", getuid());

		if (i > 0)
			snprintf(runtime + length, sizeof runtime - (size_t)length, ".%d", i);
		fd = open_own(runtime, true);
	}
	if (fd >= 0)
		return fd;
	fail(f, EXIT_HPCPOD, "store-unusable", "run-time directory /dev/shm/hpcpod-%u: cannot be made, and no name beside it",
	     getuid());
	fault_hint(f, "have the site make /run/hpcpod/UID at boot, or set HPCPOD_RUNTIME to a directory on tmpfs");
	return -1;
}
