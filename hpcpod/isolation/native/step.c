/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The same facts as scheduler_plugins, for the path without Python, by the same rules; one set of captured
 * environments tests both (tests/unit/scheduler/goldens).
 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Steps that run no ranks have numbers from here on (slurm.h: SLURM_BATCH_SCRIPT and others) … */
#define RESERVED_STEP 0xfffffff0L
/* … and newer versions spell them. */
static const char *const reserved_steps[] = {"batch", "extern", "interactive", "TBD", NULL};

enum { UNSET = -1, MALFORMED = -2 };

static const char *const job_names[] = {"SLURM_JOB_ID", "SLURM_JOBID", NULL};
static const char *const step_names[] = {"SLURM_STEP_ID", "SLURM_STEPID", NULL};
static const char *const task_names[] = {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS", NULL};

/* The number that these ASCII digits spell, at most 32 bits, or MALFORMED. */
static long parse_number(const char *text, size_t length)
{
	long value = 0;

	if (length < 1 || length > 10)
		return MALFORMED;
	for (size_t i = 0; i < length; i++) {
		if (text[i] < '0' || text[i] > '9')
			return MALFORMED;
		value = value * 10 + (text[i] - '0');
	}
	return value <= 0xffffffffL ? value : MALFORMED;
}

static long malformed(struct fault *f, const char *name, const char *expected)
{
	fail(f, EXIT_HPCPOD, "usage", "environment variable %s: got '%.60s', expected %s", name, getenv(name), expected);
	fault_hint(f, "unset %s, or start hpcpod with srun; the scheduler sets this variable", name);
	return MALFORMED;
}

static long number(const char *name, struct fault *f)
{
	const char *text = getenv(name);
	long value = text ? parse_number(text, strlen(text)) : UNSET;

	return value == MALFORMED ? malformed(f, name, "a number") : value;
}

/* The first of these variables that is there; empty ones count where a number is wanted, as wrong numbers. */
static const char *first_set(const char *const *names, bool empty_too)
{
	for (; *names; names++)
		if (getenv(*names) && (empty_too || *getenv(*names)))
			return *names;
	return NULL;
}

/*
 * Tasks of one node out of SLURM_STEP_TASKS_PER_NODE, such as "2(x3),1" (sbatch(1), SLURM_TASKS_PER_NODE).
 * -1 where the node is past the list's end, -2 when the text is not of that form.
 */
long first_count_for_node(const char *counts, long node)
{
	long result = UNSET;

	for (;;) {
		size_t length = strcspn(counts, ","), digits = strcspn(counts, ",(");
		long tasks = parse_number(counts, digits), repeat = 1;

		if (digits < length && (length < digits + 4 || counts[digits + 1] != 'x' || counts[length - 1] != ')'))
			return MALFORMED;
		if (digits < length)
			repeat = parse_number(counts + digits + 2, length - digits - 3);
		if (tasks < 0 || repeat < 1)
			return MALFORMED;
		if (result == UNSET && node < repeat)
			result = tasks;
		node -= repeat;
		if (!counts[length])
			return result;
		counts += length + 1;
	}
}

static bool is_set(const char *name)
{
	return getenv(name) && *getenv(name);
}

/*
 * An inherited descriptor (PMI_FD) or a port is served with both wire protocols by Slurm's mpi/pmi2 plugin and by
 * hydra.  PMIx needs its server's address too.
 */
static int recognise_pmi(struct step *step, struct fault *f)
{
	long fd = number("PMI_FD", f);

	if (fd == MALFORMED)
		return -1;
	if (fd >= 0 || is_set("PMI_PORT"))
		step->served |= PMI_1 | PMI_2;
	for (char **entry = environ; entry && *entry; entry++)
		if (!strncmp(*entry, "PMIX_SERVER_URI", 15) && is_set("PMIX_RANK") && is_set("PMIX_NAMESPACE"))
			step->served |= PMI_X;
	step->size_disagrees =
		!(step->served & PMI_X) && getenv("PMI_SIZE") && strtol(getenv("PMI_SIZE"), NULL, 10) != step->ntasks;
	return 0;
}

/* A rank of an mpiexec (hydra, Open MPI): 1, no such rank: 0, nonsense: -1. */
static int recognise_mpiexec(struct step *step, struct fault *f)
{
	static const char *const names[2][4] = {
		{"PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"},
		{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"},
	};

	for (size_t i = 0; i < 2; i++) {
		long value[4];
		bool complete = true;

		for (size_t k = 0; k < 4; k++) {
			value[k] = number(names[i][k], f);
			if (value[k] == MALFORMED)
				return -1;
			complete = complete && value[k] >= 0;
		}
		if (!complete)
			continue;
		if (value[0] >= value[2])
			return malformed(f, names[i][0], "less than the number of ranks") < 0 ? -1 : 0;
		if (value[1] >= value[3])
			return malformed(f, names[i][1], "less than the number of ranks of this node") < 0 ? -1 : 0;
		step->rank = value[0];
		step->local_rank = value[1];
		step->ntasks = value[2];
		step->local_ntasks = value[3];
		return 1;
	}
	return 0;
}

/*
 * Tasks on this node, 0 where they are not known.  The components of a heterogeneous job have a list each but number
 * their nodes through, so an index past the list's end means nothing there.
 */
static long local_tasks(long local_rank, struct fault *f)
{
	const char *counts = getenv("SLURM_STEP_TASKS_PER_NODE");
	long node = number("SLURM_NODEID", f), tasks;

	if (node == MALFORMED)
		return -1;
	if (!counts || node == UNSET)
		return 0;
	tasks = first_count_for_node(counts, node);
	if (tasks == MALFORMED)
		return malformed(f, "SLURM_STEP_TASKS_PER_NODE", "a list of numbers such as 2(x3),1");
	if (is_set("SLURM_HET_SIZE") && local_rank >= tasks)
		return 0;
	if (tasks < 0)
		return malformed(f, "SLURM_NODEID", "a node of SLURM_STEP_TASKS_PER_NODE");
	return local_rank < tasks ? tasks : malformed(f, "SLURM_LOCALID", "less than the tasks of this node");
}

static int recognise_task(struct step *step, struct fault *f)
{
	const char *tasks = first_set(task_names, true), *node = getenv("SLURMD_NODENAME");

	if (!tasks || !getenv("SLURM_PROCID") || !getenv("SLURM_LOCALID")) {
		fail(f, EXIT_HPCPOD, "usage", "environment variable %s: not set, although SLURM_STEP_ID is",
		     !tasks ? task_names[0] : !getenv("SLURM_PROCID") ? "SLURM_PROCID" : "SLURM_LOCALID");
		fault_hint(f, "start hpcpod with srun and leave the SLURM_ variables as they are");
		return -1;
	}
	step->ntasks = number(tasks, f);
	step->rank = number("SLURM_PROCID", f);
	step->local_rank = number("SLURM_LOCALID", f);
	if (step->ntasks < 0 || step->rank < 0 || step->local_rank < 0)
		return -1;
	if (step->rank >= step->ntasks && !is_set("SLURM_HET_SIZE"))
		return (int)malformed(f, "SLURM_PROCID", "less than the number of tasks");
	step->local_ntasks = local_tasks(step->local_rank, f);
	if (step->local_ntasks < 0)
		return -1;
	if (node && *node)
		snprintf(step->node, sizeof step->node, "%s", node);
	return 0;
}

/* The step's id into step->id, which stays empty outside one: a batch script, a shell of salloc. */
static int recognise_id(struct step *step, struct fault *f)
{
	const char *name = first_set(step_names, false);
	long id;

	for (size_t i = 0; name && reserved_steps[i]; i++)
		if (!strcmp(getenv(name), reserved_steps[i]))
			return 0;
	id = name ? number(name, f) : UNSET;
	if (id == MALFORMED)
		return -1;
	if (id >= 0 && id < RESERVED_STEP)
		snprintf(step->id, sizeof step->id, "%ld", id);
	return 0;
}

/*
 * A rank that an mpiexec started inside a job has mpiexec's numbers, and the step that it runs in, or the batch
 * script, as its scope: Open MPI forks the ranks of the batch script's own node.
 */
static int recognise_slurm(struct step *step, bool by_mpiexec, struct fault *f)
{
	const char *name = first_set(job_names, false);
	long job;

	if (!name)
		return 0;
	if (recognise_id(step, f) < 0)
		return -1;
	if (!step->id[0] && !by_mpiexec)
		return 0;
	job = number(name, f);
	if (job == MALFORMED || (!by_mpiexec && recognise_task(step, f) < 0))
		return -1;
	if (!step->id[0])
		snprintf(step->id, sizeof step->id, "batch");
	step->launcher = "slurm";
	step->shared = step->local_ntasks != 1;
	snprintf(step->job, sizeof step->job, "%ld", job);
	snprintf(step->scope, sizeof step->scope, "slurm-%s.%s", step->job, step->id);
	return 0;
}

/*
 * Ranks of an mpiexec outside any scheduler share a pod like those of a step: /dev/shm is the pod's own, and MPI's
 * shared memory lies there.  They are children of one agent (hydra's proxy, Open MPI's daemon) on each node.
 */
static void share_by_agent(struct step *step)
{
	step->shared = true;
	snprintf(step->scope, sizeof step->scope, "mpiexec-%d", getppid());
}

int step_recognise(struct step *step, struct fault *f)
{
	int by_mpiexec;

	memset(step, 0, sizeof *step);
	gethostname(step->node, sizeof step->node - 1);
	step->launcher = "local";
	step->ntasks = step->local_ntasks = 1;
	snprintf(step->scope, sizeof step->scope, "local-%ld-%d", (long)(clock_realtime_ns() / 1000000000), getpid());
	by_mpiexec = recognise_mpiexec(step, f);
	if (by_mpiexec < 0 || recognise_slurm(step, by_mpiexec > 0, f) < 0)
		return -1;
	if (by_mpiexec && step->local_ntasks > 1 && !step->job[0])
		share_by_agent(step);
	return recognise_pmi(step, f);
}
