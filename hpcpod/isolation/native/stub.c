/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `hpcpod --rank PROGRAM …`: what the image's own mpiexec starts in the pod of a local launch.  It stamps the
 * rank's start-up event, checks that the world has the size that was asked for, and becomes the program.
 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static long first_number(const char *const *names)
{
	for (; *names; names++)
		if (getenv(*names))
			return strtol(getenv(*names), NULL, 10);
	return -1;
}

static int check_size(long size, struct fault *f)
{
	const char *wanted = getenv("HPCPOD_NTASKS");

	if (!wanted || size == strtol(wanted, NULL, 10))
		return 0;
	fail(f, EXIT_HPCPOD, "mpi-mismatch", "the image's mpiexec made a world of %ld ranks, %s were asked for", size, wanted);
	fault_hint(f, "is there a second MPI in the image, whose mpiexec comes first on the PATH?");
	return -1;
}

int rank_stub(char *const *argv, struct fault *f)
{
	static const char *const rank_names[] = {"PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", NULL};
	static const char *const size_names[] = {"PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "HPCPOD_NTASKS", NULL};
	struct launch launch = {.stamps = {.start = clock_realtime_ns(), .how = "launched"}};
	const char *scope = getenv("HPCPOD_SCOPE"), *image = getenv("HPCPOD_IMAGE");
	int runtime = open(STUB_EVENTS "/..", O_PATH | O_DIRECTORY | O_CLOEXEC), events;

	if (!argv[0] || !scope)
		return fail(f, EXIT_HPCPOD, "usage", "hpcpod --rank is for mpiexec inside a pod");
	if (step_recognise(&launch.step, f) < 0)
		return -1;
	launch.step.launcher = "local";
	snprintf(launch.step.scope, sizeof launch.step.scope, "%s", scope);
	launch.step.rank = launch.step.local_rank = first_number(rank_names);
	launch.request.reference = image ? image : "";
	if (check_size(first_number(size_names), f) < 0)
		return -1;
	launch.stamps.found = launch.stamps.entered = launch.stamps.start;
	events = runtime >= 0 ? events_open(runtime, &launch.step, f) : -1;
	if (runtime >= 0)
		close(runtime);
	if (events >= 0)
		events_write(events, &launch);
	execvp(argv[0], argv);
	return explain_exec(argv[0], errno, f);
}
