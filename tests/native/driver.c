/* SPDX-License-Identifier: Apache-2.0 */
/* Calls single functions of the native part, for test_native.py: one word of what, then its arguments. */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *read_all(const char *path, size_t *size)
{
	struct stat s;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char *bytes;

	if (fd < 0 || fstat(fd, &s) < 0)
		abort();
	*size = (size_t)s.st_size;
	bytes = malloc(*size ? *size : 1);
	if (!bytes || read(fd, bytes, *size) != s.st_size)
		abort();
	close(fd);
	return bytes;
}

/* A copy of exactly this size, so that the sanitizer sees a read past its end. */
static char *exact(const char *bytes, size_t size)
{
	char *copy = malloc(size ? size : 1);

	if (!copy)
		abort();
	memcpy(copy, bytes, size);
	return copy;
}

static bool parses(const char *bytes, size_t size, struct record *record, struct fault *f)
{
	if (record_parse(exact(bytes, size), size, record, f) < 0) {
		if (!f->text[0] || !f->code || record->bytes || record->ops)
			abort();
		return false;
	}
	return true;
}

static int parse(const char *path)
{
	struct record record;
	struct fault f = {0};
	size_t size;
	char *bytes = read_all(path, &size);
	const char *rootfs;

	if (!parses(bytes, size, &record, &f)) {
		fault_print(&f);
		free(bytes);
		return f.code;
	}
	rootfs = record_word(&record, OP_ROOTFS);
	printf("%zu operations, rootfs %s, current %d\n", record.count, rootfs ? rootfs : "(none)",
	       record_is_current(&record, 0));
	record_free(&record);
	free(bytes);
	return 0;
}

static int truncations(const char *path)
{
	size_t size, accepted = 0;
	char *bytes = read_all(path, &size);

	for (size_t length = 0; length < size; length++) {
		struct record record;
		struct fault f = {0};

		if (parses(bytes, length, &record, &f)) {
			accepted++;
			record_free(&record);
		}
	}
	free(bytes);
	printf("%zu of %zu truncations accepted\n", accepted, size);
	return accepted ? 1 : 0;
}

static unsigned long next_random(unsigned long *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static size_t mutate(char *bytes, size_t size, size_t room, unsigned long *state)
{
	for (unsigned long n = 1 + next_random(state) % 4; n > 0 && size > 0; n--) {
		size_t at = next_random(state) % size, other = next_random(state) % size, length;

		switch (next_random(state) % 5) {
		case 0:
			bytes[at] = (char)next_random(state);
			break;
		case 1:
			bytes[at] = '\0';
			break;
		case 2: /* cut a piece out */
			length = next_random(state) % (size - at) + 1;
			memmove(bytes + at, bytes + at + length, size - at - length);
			size -= length;
			break;
		case 3: /* a piece over another */
			length = size - (at > other ? at : other);
			memmove(bytes + at, bytes + other, length);
			break;
		default: /* a piece twice */
			length = size - at < room - size ? size - at : room - size;
			memmove(bytes + at + length, bytes + at, size - at);
			size += length;
		}
	}
	return size;
}

/* Whatever the record says, what reads it must stay within it. */
static void use(const struct record *record)
{
	struct fault f = {0};

	record_is_current(record, 0);
	descriptors_close(record, descriptor_of_pmi());
	if (environment_apply(record, &f) < 0 && !f.text[0])
		abort();
}

static int mutations(const char *path, const char *seed, const char *count)
{
	unsigned long state = strtoul(seed, NULL, 10) | 1;
	size_t size, accepted = 0, total = strtoul(count, NULL, 10);
	char *bytes = read_all(path, &size), *changed = malloc(4 * size);

	for (size_t i = 0; i < total && changed; i++) {
		struct record record;
		struct fault f = {0};
		size_t length;

		memcpy(changed, bytes, size);
		length = mutate(changed, size, 4 * size, &state);
		if (parses(changed, length, &record, &f)) {
			accepted++;
			if (accepted % 16 == 0)
				use(&record);
			record_free(&record);
		}
	}
	free(changed);
	free(bytes);
	printf("%zu of %zu mutations accepted\n", accepted, total);
	return 0;
}

static int request(char *const *words)
{
	struct request request;

	if (request_parse(words, &request) == REQUEST_FOR_PYTHON) {
		printf("python\n");
		return 0;
	}
	printf("%d %s %s", request.option_count, request.reference, request.hash);
	for (; *request.program; request.program++)
		printf(" %s", *request.program);
	printf("\n");
	return 0;
}

static int step(void)
{
	struct step step;
	struct fault f = {0};

	if (step_recognise(&step, &f) < 0) {
		fault_print(&f);
		return f.code;
	}
	printf("launcher=%s\nscope=%s\njob_id=%s\nstep_id=%s\nnode=%s\nrank=%ld\nlocal_rank=%ld\nntasks=%ld\n"
	       "local_ntasks=%ld\nserved=%s%s%s\nshared=%d\nsize_disagrees=%d\n",
	       step.launcher, step.scope, step.job, step.id, step.node, step.rank, step.local_rank, step.ntasks,
	       step.local_ntasks, step.served & PMI_1 ? "pmi1 " : "", step.served & PMI_2 ? "pmi2 " : "",
	       step.served & PMI_X ? "pmix " : "", step.shared, step.size_disagrees);
	return 0;
}

static int environment(const char *path)
{
	struct record record;
	struct fault f = {0};
	size_t size;
	char *bytes = read_all(path, &size);

	if (!parses(bytes, size, &record, &f) || environment_apply(&record, &f) < 0) {
		fault_print(&f);
		return f.code;
	}
	for (char **entry = environ; *entry; entry++)
		printf("%s%c", *entry, '\0');
	record_free(&record);
	free(bytes);
	return 0;
}

static int explain(const char *program, const char *error)
{
	struct fault f = {0};

	explain_exec(program, (int)strtol(error, NULL, 10), &f);
	fault_print(&f);
	return f.code;
}

static int runtime(void)
{
	struct fault f = {0};

	if (runtime_open(&f) < 0) {
		fault_print(&f);
		return f.code;
	}
	printf("%s\n", runtime_path());
	return 0;
}

static int event(const char *reference)
{
	struct launch launch = {.request.reference = reference, .stamps = {.how = "found", .create_end = 1}};
	struct fault f = {0};

	if (step_recognise(&launch.step, &f) < 0)
		return f.code;
	events_write(dup(STDOUT_FILENO), &launch);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "parse") && argc == 3)
		return parse(argv[2]);
	if (!strcmp(what, "truncations") && argc == 3)
		return truncations(argv[2]);
	if (!strcmp(what, "mutations") && argc == 5)
		return mutations(argv[2], argv[3], argv[4]);
	if (!strcmp(what, "request"))
		return request(argv + 2);
	if (!strcmp(what, "step"))
		return step();
	if (!strcmp(what, "counts") && argc == 4)
		return printf("%ld\n", first_count_for_node(argv[2], strtol(argv[3], NULL, 10))) < 0;
	if (!strcmp(what, "environment") && argc == 3)
		return environment(argv[2]);
	if (!strcmp(what, "explain") && argc == 4)
		return explain(argv[2], argv[3]);
	if (!strcmp(what, "runtime"))
		return runtime();
	if (!strcmp(what, "event") && argc == 3)
		return event(argv[2]);
	fprintf(stderr, "driver: %s: unknown\n", what);
	return 99;
}
