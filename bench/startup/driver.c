// SPDX-License-Identifier: Apache-2.0
/*
 * Start N copies of a command at once and say how long it took until all had ended: the same launcher for
 * every contender, so that its own cost is the same for all.
 *
 *   driver N RANKVARS -- PROG ARGS...      RANKVARS: names separated by commas, set to 0..N-1; "" for none
 *
 * An argument {} becomes a word of the copy's own (crun wants a name for each container).
 *
 * Prints: wall_ns user_us sys_us failed, of the N copies and the children that they waited for.
 * posix_spawn is vfork and exec in musl and glibc, so the driver's own size does not count.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void set_rank(char *names, int rank)
{
	char number[16];
	char *copy = strdup(names), *at = copy, *name;

	snprintf(number, sizeof number, "%d", rank);
	while ((name = strsep(&at, ",")) != NULL)
		if (*name)
			setenv(name, number, 1);
	free(copy);
}

/* argv of one copy, with {} replaced; the same array each time. */
static char **words(char **argv, int argc, int rank)
{
	static char own[48];
	static char **copy;

	copy = copy ? copy : calloc((size_t)argc + 1, sizeof *copy);
	snprintf(own, sizeof own, "c%d-%d", (int)getpid(), rank);
	for (int i = 0; copy && i < argc; i++)
		copy[i] = strcmp(argv[i], "{}") ? argv[i] : own;
	return copy;
}

static long long microseconds(struct timeval t)
{
	return t.tv_sec * 1000000LL + t.tv_usec;
}

int main(int argc, char **argv)
{
	int count, failed = 0, error, status;
	long long start, end;
	struct rusage used;
	pid_t pid;

	if (argc < 5 || strcmp(argv[3], "--") || (count = atoi(argv[1])) < 1) {
		fprintf(stderr, "usage: driver N RANKVARS -- PROG ARGS...\n");
		return 2;
	}
	start = now();
	for (int rank = 0; rank < count; rank++) {
		set_rank(argv[2], rank);
		error = posix_spawnp(&pid, argv[4], NULL, NULL, words(argv + 4, argc - 4, rank), environ);
		if (error) {
			fprintf(stderr, "driver: %s: %s\n", argv[4], strerror(error));
			return 2;
		}
	}
	while (wait(&status) > 0)
		failed += status != 0;
	end = now();
	getrusage(RUSAGE_CHILDREN, &used);
	printf("%lld %lld %lld %d\n", end - start, microseconds(used.ru_utime), microseconds(used.ru_stime), failed);
	return 0;
}
