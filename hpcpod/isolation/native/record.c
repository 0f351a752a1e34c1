/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sealed record: NUL-terminated words.  "hpcpod-record", the version, then operations, each a name and a
 * fixed number of words, and "end" as the last.  An unknown name, a missing word or a missing end refuses the
 * whole record: half a plan must never be applied.
 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { RECORD_MAX = 4 << 20 };

static const struct {
	const char *name;
	unsigned words;
} grammar[] = {
	[OP_GUARD] = {"guard", 6},           [OP_ROOTFS] = {"rootfs", 3},
	[OP_FUSE] = {"fuse", 5},
	[OP_WRITABLE] = {"writable", 1},     [OP_BIND] = {"bind", 3},
	[OP_BIND_ENV] = {"bind-env", 1},     [OP_TMPFS] = {"tmpfs", 3},
	[OP_FILE] = {"file", 2},             [OP_ENV_SET] = {"env-set", 2},
	[OP_ENV_DEFAULT] = {"env-default", 2}, [OP_ENV_UNSET] = {"env-unset", 1},
	[OP_ENV_KEEP] = {"env-keep", 1},
	[OP_WORKDIR] = {"workdir", 1},       [OP_COMMAND] = {"command", 1},
	[OP_LAUNCH] = {"launch", 1},         [OP_SECCOMP] = {"seccomp", 1},
	[OP_PMI_CHECK] = {"pmi-check", 1},   [OP_PMI_ACCEPT] = {"pmi-accept", 1},
	[OP_REFERENCE] = {"reference", 1},   [OP_DIGEST] = {"digest", 1},
	[OP_SHIELD] = {"shield", 2},         [OP_UNTIL] = {"until", 1},
	[OP_FRESH] = {"fresh", 1},
	[OP_KEEP_FDS] = {"keep-fds", 1},     [OP_END] = {"end", 0},
};

enum { GRAMMAR_SIZE = sizeof grammar / sizeof grammar[0] };

struct reader {
	char *next, *end;
};

static const char *next_word(struct reader *reader)
{
	char *word = reader->next, *nul;

	if (word >= reader->end)
		return NULL;
	nul = memchr(word, '\0', (size_t)(reader->end - word));
	if (!nul)
		return NULL;
	reader->next = nul + 1;
	return word;
}

static int grammar_find(const char *name)
{
	for (int i = 0; i < GRAMMAR_SIZE; i++)
		if (!strcmp(grammar[i].name, name))
			return i;
	return -1;
}

static int add_op(struct record *record, size_t *room)
{
	struct op *grown;

	if (record->count < *room)
		return 0;
	*room = *room ? *room * 2 : 64;
	grown = realloc(record->ops, *room * sizeof *record->ops);
	if (!grown)
		return -1;
	record->ops = grown;
	return 0;
}

/* The image is a tree of the node, or a packed file: one of them, once. */
static int check_roots(const struct record *record, struct fault *f)
{
	size_t roots = 0;

	for (size_t i = 0; i < record->count; i++)
		roots += record->ops[i].kind == OP_ROOTFS || record->ops[i].kind == OP_FUSE;
	if (roots == 1)
		return 0;
	return fail(f, EXIT_HPCPOD, "record", roots ? "sealed record: more than one of rootfs and fuse"
	                                            : "sealed record: no rootfs");
}

static int parse_ops(struct record *record, struct reader *reader, struct fault *f)
{
	size_t room = 0;

	for (;;) {
		const char *name = next_word(reader);
		int kind = name ? grammar_find(name) : -1;
		struct op *op;

		if (!name)
			return fail(f, EXIT_HPCPOD, "record", "sealed record: ends after %zu operations, without \"end\"",
			            record->count);
		if (kind < 0)
			return fail(f, EXIT_HPCPOD, "record", "sealed record: unknown operation %.40s", name);
		if (add_op(record, &room) < 0)
			return fail_errno(f, "record", "sealed record");
		op = &record->ops[record->count++];
		*op = (struct op){.kind = (enum op_kind)kind};
		for (unsigned i = 0; i < grammar[kind].words; i++)
			if (!(op->word[i] = next_word(reader)))
				return fail(f, EXIT_HPCPOD, "record", "sealed record: %s lacks word %u", name, i + 1);
		if (kind != OP_END)
			continue;
		if (reader->next != reader->end)
			return fail(f, EXIT_HPCPOD, "record", "sealed record: words after \"end\"");
		return check_roots(record, f);
	}
}

/* Takes ownership of bytes, also on failure. */
int record_parse(char *bytes, size_t size, struct record *record, struct fault *f)
{
	struct reader reader = {bytes, bytes + size};
	const char *magic, *version;

	*record = (struct record){.bytes = bytes, .size = size};
	magic = next_word(&reader);
	version = next_word(&reader);
	if (!magic || !version || strcmp(magic, "hpcpod-record") != 0 || strcmp(version, "1") != 0) {
		record_free(record);
		return fail(f, EXIT_HPCPOD, "record", "sealed record: not of version 1");
	}
	if (parse_ops(record, &reader, f) == 0)
		return 0;
	record_free(record);
	return -1;
}

int record_read(int dir, const char *name, struct record *record, struct fault *f)
{
	struct stat status;
	char *bytes = NULL;
	ssize_t got = -1;
	int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		return fail_errno(f, "record", "sealed record %s", name);
	if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || status.st_size > RECORD_MAX)
		errno = EINVAL;
	else if ((bytes = malloc((size_t)status.st_size + 1)) != NULL)
		got = read(fd, bytes, (size_t)status.st_size);
	close(fd);
	if (got >= 0 && got == status.st_size)
		return record_parse(bytes, (size_t)got, record, f);
	free(bytes);
	return fail_errno(f, "record", "sealed record %s", name);
}

void record_free(struct record *record)
{
	free(record->bytes);
	free(record->ops);
	*record = (struct record){0};
}

const struct op *record_op(const struct record *record, enum op_kind kind)
{
	for (size_t i = 0; i < record->count; i++)
		if (record->ops[i].kind == kind)
			return &record->ops[i];
	return NULL;
}

const char *record_word(const struct record *record, enum op_kind kind)
{
	const struct op *op = record_op(record, kind);

	return op ? op->word[0] : NULL;
}

static bool same(const char *word, unsigned long long value)
{
	return strtoull(word, NULL, 10) == value;
}

static unsigned long long nanoseconds(struct timespec time)
{
	return (unsigned long long)time.tv_sec * 1000000000ULL + (unsigned long long)time.tv_nsec;
}

/* A guard of zeros says that there was no such file, nor a link; with a size of 1, that nobody let this user see. */
static bool still_absent(const struct op *op)
{
	struct stat s;

	if (lstat(op->word[0], &s) == 0)
		return false;
	return same(op->word[3], 1) ? errno == EACCES : errno == ENOENT || errno == ENOTDIR;
}

static bool guard_holds(const struct op *op)
{
	struct stat s;

	if (op->kind == OP_GUARD && same(op->word[2], 0))
		return still_absent(op);
	if (stat(op->word[0], &s) < 0)
		return false;
	if (!same(op->word[1], s.st_dev) || !same(op->word[2], s.st_ino))
		return false;
	return op->kind != OP_GUARD ||
	       (same(op->word[3], (unsigned long long)s.st_size) && same(op->word[4], nanoseconds(s.st_mtim)) &&
	        same(op->word[5], nanoseconds(s.st_ctim)));
}

/*
 * Whether the files that the plan was made from are still what they were, and the image's tree or file is there;
 * and whether it was made late enough: some plans end at a time (a signature does), others are good only for the
 * starts that waited for them (the registry was to be asked).  start: of this program.
 */
bool record_is_current(const struct record *record, int64_t start)
{
	for (size_t i = 0; i < record->count; i++) {
		const struct op *op = &record->ops[i];

		switch (op->kind) {
		case OP_GUARD:
		case OP_ROOTFS:
		case OP_FUSE:
			if (!guard_holds(op))
				return false;
			break;
		case OP_UNTIL:
			if (clock_realtime_ns() >= strtoll(op->word[0], NULL, 10))
				return false;
			break;
		case OP_FRESH:
			if (start >= strtoll(op->word[0], NULL, 10))
				return false;
			break;
		default:
			break;
		}
	}
	return true;
}
