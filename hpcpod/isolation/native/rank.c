/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned pmi_bit(const char *kind)
{
	if (!strcmp(kind, "pmi1"))
		return PMI_1;
	if (!strcmp(kind, "pmi2"))
		return PMI_2;
	return !strcmp(kind, "pmix") ? PMI_X : 0;
}

/*
 * A world that would fall apart into singletons must not start.  The quick answer is here: what the process
 * manager serves against what the image's MPI understands.  Where they do not meet, Python looks at the program
 * (it may be no MPI program at all) and says what is wrong.
 */
int rank_check_mpi(const struct record *record, const struct launch *launch, struct fault *f)
{
	const char *mode = record_word(record, OP_PMI_CHECK), *path = "";
	const char *words[4100] = {"-m", "hpcpod.launcher.mpi_check", record_word(record, OP_ROOTFS), mode};
	unsigned accepted = 0;
	size_t n = 5;

	if (record_word(record, OP_LAUNCH) && launch->step.ntasks > 1) {
		fail(f, EXIT_HPCPOD, "usage", "option --ntasks: this is rank %ld of a step of %ld", launch->step.rank,
		     launch->step.ntasks);
		fault_hint(f, "the scheduler starts the ranks: srun -n N hpcpod run …");
		return -1;
	}
	for (size_t i = 0; i < record->count; i++) {
		const struct op *op = &record->ops[i];

		if (op->kind == OP_PMI_ACCEPT)
			accepted |= pmi_bit(op->word[0]);
		else if (op->kind == OP_ENV_SET && !strcmp(op->word[0], "PATH"))
			path = op->word[1];
	}
	if (!mode || launch->step.ntasks < 2 || (launch->step.served & accepted && !launch->step.size_disagrees))
		return 0;
	words[4] = path;
	for (char *const *word = launch->request.program; *word && n < 4099; word++)
		words[n++] = *word;
	for (size_t i = 0; n == 5 && i < record->count; i++)
		if (record->ops[i].kind == OP_COMMAND)
			words[n++] = record->ops[i].word[0];
	return python_run(words, f);
}

/* The first of the plan's directories that the pod has; "." is where the rank was started. */
static int change_directory(const struct record *record, const char *caller_cwd, struct fault *f)
{
	const char *last = "/";

	for (size_t i = 0; i < record->count; i++) {
		if (record->ops[i].kind != OP_WORKDIR)
			continue;
		last = record->ops[i].word[0];
		if (!strcmp(last, "."))
			last = caller_cwd;
		if (last[0] == '/' && chdir(last) == 0 && setenv("PWD", last, 1) == 0)
			return 0;
	}
	fail_errno(f, "workdir", "working directory %s in the pod", last);
	fault_hint(f, "bind it into the pod with --bind, or choose another with --workdir");
	return -1;
}

/* argv: the plan's launcher words, then the caller's program, or the image's own command. */
static char **build_argv(const struct launch *launch, struct fault *f)
{
	const struct record *record = &launch->record;
	size_t words = 0, commands = 0, n = 0;
	char **argv;

	while (launch->request.program[words])
		words++;
	argv = calloc(record->count + words + 1, sizeof *argv);
	if (!argv) {
		fail_errno(f, "exec", "argument list");
		return NULL;
	}
	for (size_t i = 0; i < record->count; i++)
		if (record->ops[i].kind == OP_LAUNCH)
			argv[n++] = (char *)record->ops[i].word[0];
	for (size_t i = 0; i < words; i++)
		argv[n++] = launch->request.program[i];
	for (size_t i = 0; words == 0 && i < record->count; i++)
		if (record->ops[i].kind == OP_COMMAND)
			argv[n++] = (char *)record->ops[i].word[0], commands++;
	if (words + commands > 0)
		return argv;
	fail(f, EXIT_NOT_FOUND, "no-command", "%s: no program given, and the image has no command of its own",
	     launch->request.reference);
	fault_hint(f, "hpcpod run %s -- PROGRAM [ARGUMENTS]", launch->request.reference);
	return NULL;
}

/* From a process in the pod to the user's program.  Returns only on failure. */
int rank_execute(const struct launch *launch, const char *caller_cwd, int events, struct fault *f)
{
	char **argv;
	int error;

	if (environment_apply(&launch->record, f) < 0 || change_directory(&launch->record, caller_cwd, f) < 0)
		return -1;
	argv = build_argv(launch, f);
	if (!argv)
		return -1;
	if (record_word(&launch->record, OP_LAUNCH))
		setenv("HPCPOD_SCOPE", launch->step.scope, 1); /* for rank_stub, which the launcher starts */
	events_write(events, launch);
	descriptors_close(&launch->record);
	/* The filter last: what comes before may need calls that it forbids. */
	if (privileges_drop(&launch->record, f) < 0)
		return -1;
	execvp(argv[0], argv);
	error = errno;
	return explain_exec(argv[0], error, f);
}
