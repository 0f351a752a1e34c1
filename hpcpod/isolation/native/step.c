/* SPDX-License-Identifier: Apache-2.0 */
/* The same facts as scheduler_plugins, for the path without Python; one set of golden files tests both. */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Steps that run no ranks have numbers at the top of the range (slurm.h: SLURM_BATCH_SCRIPT and others). */
#define SLURM_MAX_NORMAL_STEP 0xfffffff0UL

/* A whole decimal number of the environment, or -1. */
static long number(const char *name)
{
	const char *text = getenv(name);
	char *end;
	long value;

	if (!text || *text < '0' || *text > '9')
		return -1;
	errno = 0;
	value = strtol(text, &end, 10);
	return *end || errno ? -1 : value;
}

/*
 * Tasks of one node out of SLURM_STEP_TASKS_PER_NODE, such as "2(x3),1": counts with repetitions.
 * 0 when the text is not of that form.
 */
long first_count_for_node(const char *counts, long node)
{
	while (*counts) {
		char *end;
		long tasks = strtol(counts, &end, 10), repeat = 1;

		if (end == counts || tasks <= 0)
			return 0;
		if (end[0] == '(' && end[1] == 'x') {
			repeat = strtol(end + 2, &end, 10);
			if (repeat <= 0 || *end++ != ')')
				return 0;
		}
		if (node < repeat)
			return tasks;
		node -= repeat;
		if (*end && *end != ',')
			return 0;
		counts = *end ? end + 1 : end;
	}
	return 0;
}

static unsigned served_pmi(void)
{
	unsigned served = 0;

	/* Slurm's pmi2 plugin speaks both wire protocols on the descriptor that it names in PMI_FD. */
	if ((getenv("PMI_FD") || getenv("PMI_PORT")) && getenv("PMI_RANK"))
		served |= PMI_1 | PMI_2;
	if (getenv("PMIX_RANK") && getenv("PMIX_NAMESPACE"))
		served |= PMI_X;
	return served;
}

static bool recognise_slurm(struct step *step)
{
	const char *job = getenv("SLURM_JOB_ID"), *counts = getenv("SLURM_STEP_TASKS_PER_NODE");
	const char *node = getenv("SLURMD_NODENAME");
	long id = number("SLURM_STEP_ID"), nodeid = number("SLURM_NODEID");

	if (!job || number("SLURM_JOB_ID") < 0 || id < 0 || (unsigned long)id >= SLURM_MAX_NORMAL_STEP ||
	    number("SLURM_PROCID") < 0)
		return false;
	step->launcher = "slurm";
	snprintf(step->job, sizeof step->job, "%s", job);
	snprintf(step->id, sizeof step->id, "%ld", id);
	if (node)
		snprintf(step->node, sizeof step->node, "%s", node);
	step->rank = number("SLURM_PROCID");
	step->local_rank = number("SLURM_LOCALID");
	step->ntasks = number("SLURM_STEP_NUM_TASKS");
	if (step->ntasks < 1)
		step->ntasks = number("SLURM_NTASKS");
	step->local_ntasks = counts && nodeid >= 0 ? first_count_for_node(counts, nodeid) : 0;
	step->shared = step->local_ntasks != 1;
	snprintf(step->scope, sizeof step->scope, "slurm-%s.%s", step->job, step->id);
	return true;
}

void step_recognise(struct step *step)
{
	memset(step, 0, sizeof *step);
	gethostname(step->node, sizeof step->node - 1);
	step->launcher = "local";
	step->ntasks = step->local_ntasks = 1;
	snprintf(step->scope, sizeof step->scope, "local-%ld-%d", (long)(clock_realtime_ns() / 1000000000), getpid());
	if (!recognise_slurm(step))
		return;
	step->served = served_pmi();
	step->size_disagrees = (step->served & PMI_2) && number("PMI_SIZE") >= 0 && number("PMI_SIZE") != step->ntasks;
}
