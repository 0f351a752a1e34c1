/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks of the node's memory, by which ranks agree on who does the work that all of them wait for.
 *
 * The first to lock RUNTIME/locks/NAME does it; the others wait for a shared lock, and all wake at once.  A winner
 * that fails leaves the time and its exit status in the lock file: those who waited for it end with the same status
 * and without a second message.  The kernel drops the lock of a killed winner, and the next rank takes over.
 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

int lock_open(int runtime, const char *name, struct fault *f)
{
	static const char *const directories[] = {"plans", "pods", "mounts", "locks"};
	char path[256];
	int fd;

	/* Each by itself: the image store makes some of them too, and this is not the path of a ready pod. */
	for (size_t i = 0; i < sizeof directories / sizeof directories[0]; i++)
		mkdirat(runtime, directories[i], 0700);
	snprintf(path, sizeof path, "locks/%s", name);
	fd = openat(runtime, path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	return fd >= 0 ? fd : fail_errno(f, "store-unusable", "lock %s/%s", runtime_path(), path);
}

int lock_patiently(int fd, int operation)
{
	int result;

	do
		result = flock(fd, operation);
	while (result < 0 && errno == EINTR);
	return result;
}

/*
 * again: this rank has waited before, and there was no pod.  Then it queues for the lock of its own: with the
 * shared one, many that woke together would keep each other from making the pod.
 */
enum turn lock_take_turn(int fd, bool again, struct fault *f)
{
	if (flock(fd, LOCK_EX | LOCK_NB) == 0 || (again && lock_patiently(fd, LOCK_EX) == 0))
		return MY_TURN;
	if (errno == EWOULDBLOCK && lock_patiently(fd, LOCK_SH) == 0)
		return WAITED;
	fail_errno(f, "store-unusable", "lock in %s", runtime_path());
	return LOCK_FAILED;
}

void lock_note_failure(int fd, int code)
{
	char note[64];
	int length = snprintf(note, sizeof note, "%" PRId64 " %d\n", clock_realtime_ns(), code);

	/* Best effort: without the note the next rank tries by itself and says what is wrong. */
	if (ftruncate(fd, 0) < 0 || pwrite(fd, note, (size_t)length, 0) < 0)
		return;
}

/* Exit status of a winner that failed after `since`, or 0. */
int lock_noted_failure(int fd, int64_t since)
{
	char note[64];
	ssize_t length = pread(fd, note, sizeof note - 1, 0);
	int64_t when;
	int code;

	if (length <= 0)
		return 0;
	note[length] = '\0';
	return sscanf(note, "%" SCNd64 " %d", &when, &code) == 2 && when > since ? code : 0;
}

/* Said already, by the rank that tried while this one waited. */
int lock_end_like_winner(int code, struct fault *f)
{
	return fail(f, code, "", "%s", "");
}
