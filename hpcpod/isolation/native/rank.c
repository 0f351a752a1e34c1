/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
	int pmi = descriptor_of_pmi(), error; /* before the image's environment can name another */
	char **argv;

	if (environment_apply(&launch->record, f) < 0 || change_directory(&launch->record, caller_cwd, f) < 0)
		return -1;
	argv = build_argv(launch, f);
	if (!argv)
		return -1;
	if (record_word(&launch->record, OP_LAUNCH))
		setenv("HPCPOD_SCOPE", launch->step.scope, 1); /* for rank_stub, which the launcher starts */
	events_write(events, launch);
	descriptors_close(&launch->record, pmi);
	/* The filter last: what comes before may need calls that it forbids. */
	if (privileges_drop(&launch->record, f) < 0)
		return -1;
	execvp(argv[0], argv);
	error = errno;
	return explain_exec(argv[0], error, f);
}
