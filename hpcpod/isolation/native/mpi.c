/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A world that would fall apart into singletons must not start.
 *
 * The quick answer is what the process manager serves against what the image's MPI understands.  Where they do not
 * meet, Python looks at the program, which may be no MPI program at all: once per node and program, not per rank.
 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
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

static unsigned accepted_kinds(const struct record *record)
{
	unsigned kinds = 0;

	for (size_t i = 0; i < record->count; i++)
		if (record->ops[i].kind == OP_PMI_ACCEPT)
			kinds |= pmi_bit(record->ops[i].word[0]);
	return kinds;
}

static const char *image_path(const struct record *record)
{
	const char *path = "";

	for (size_t i = 0; i < record->count; i++)
		if (record->ops[i].kind == OP_ENV_SET && !strcmp(record->ops[i].word[0], "PATH"))
			path = record->ops[i].word[1];
	return path;
}

/* Ask Python about this program; on yes leave a file of this name, so that no other rank asks. */
static int ask(const char *const *words, int runtime, const char *verdict, int lock, struct fault *f)
{
	int fd;

	if (python_run(words, f) < 0) {
		lock_note_failure(lock, f->code);
		return -1;
	}
	fd = openat(runtime, verdict, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd >= 0)
		close(fd);
	return 0;
}

static int ask_once(const char *const *words, const char *name, const struct launch *launch, struct fault *f)
{
	char verdict[64];
	int lock, result = -1, code;

	snprintf(verdict, sizeof verdict, "plans/%s", name);
	if (faccessat(launch->runtime, verdict, F_OK, 0) == 0)
		return 0;
	lock = lock_open(launch->runtime, name, f);
	if (lock < 0)
		return -1;
	for (bool again = false;; again = true) {
		enum turn turn = lock_take_turn(lock, again, f);

		if (turn == LOCK_FAILED)
			break;
		code = lock_noted_failure(lock, launch->stamps.start);
		if (faccessat(launch->runtime, verdict, F_OK, 0) == 0)
			result = 0;
		else if (code)
			result = lock_end_like_winner(code, f);
		else if (turn == MY_TURN)
			result = ask(words, launch->runtime, verdict, lock, f);
		else
			continue; /* the one that asked was killed */
		break;
	}
	close(lock);
	return result;
}

/* tree: where the image can be looked at now, if it is no directory of the node. */
int mpi_check(const struct record *record, const char *tree, const struct launch *launch, struct fault *f)
{
	const char *mode = record_word(record, OP_PMI_CHECK), *program = launch->request.program[0];
	const char *rootfs = record_word(record, OP_ROOTFS), *image = rootfs ? rootfs : record_word(record, OP_FUSE);
	const char *words[] = {"-m", "hpcpod.launcher.mpi_check", rootfs ? rootfs : tree, mode, image_path(record),
	                       program ? program : record_word(record, OP_COMMAND), NULL};
	char served[16], name[HASH_SIZE];
	unsigned accepted = accepted_kinds(record);

	if (record_word(record, OP_LAUNCH) && launch->step.ntasks > 1) {
		fail(f, EXIT_HPCPOD, "usage", "option --ntasks: this is rank %ld of a step of %ld", launch->step.rank,
		     launch->step.ntasks);
		fault_hint(f, "the scheduler starts the ranks: srun -n N hpcpod run …");
		return -1;
	}
	/* No kind at all: the user demands one that the image's MPI does not speak; that is wrong for one rank, too. */
	if (!mode || (accepted && launch->step.ntasks < 2) ||
	    (launch->step.served & accepted && !launch->step.size_disagrees))
		return 0;
	snprintf(served, sizeof served, "%u.%d", launch->step.served, launch->step.size_disagrees);
	hash_words((const char *const[]){image, mode, words[4], words[5] ? words[5] : "", served, NULL}, name);
	return ask_once(words, name, launch, f);
}
