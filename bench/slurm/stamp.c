// SPDX-License-Identifier: Apache-2.0
/*
 * Who runs at what time: prints CLOCK_REALTIME in nanoseconds and the rank, first thing in main.
 * With arguments it is srun's start instead: prints the time as "start" and becomes the program named.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct timespec t;
	const char *rank;

	clock_gettime(CLOCK_REALTIME, &t);
	rank = getenv("SLURM_PROCID");
	printf("stamp %s %lld\n", argc > 1 || !rank ? "start" : rank, t.tv_sec * 1000000000LL + t.tv_nsec);
	fflush(stdout);
	if (argc < 2)
		return 0;
	execvp(argv[1], argv + 1);
	perror(argv[1]);
	return 127;
}
