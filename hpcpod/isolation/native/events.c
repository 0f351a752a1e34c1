/* SPDX-License-Identifier: Apache-2.0 */
/* One line of JSON per rank in node-local memory, always: docs/reference/events.md. */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LOCAL_MAX = 1 << 20 };

/* Runs outside a scheduler share one file, which starts anew when it is large; a step has its own. */
static int open_file(int directory, const struct step *step)
{
	const int flags = O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC;
	char name[128] = "local.jsonl";
	struct stat s;
	int fd;

	if (strcmp(step->launcher, "local") != 0)
		snprintf(name, sizeof name, "%s.jsonl", step->scope);
	fd = openat(directory, name, flags, 0600);
	if (fd < 0 || strcmp(step->launcher, "local") != 0 || fstat(fd, &s) < 0 || s.st_size < LOCAL_MAX)
		return fd;
	close(fd);
	renameat(directory, name, directory, "local.old.jsonl");
	return openat(directory, name, flags, 0600);
}

/* Opened before the pod is entered: its /dev/shm is another. */
int events_open(int runtime, const struct step *step, struct fault *f)
{
	int directory = openat(runtime, "events", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), fd;

	if (directory < 0 && errno == ENOENT && (mkdirat(runtime, "events", 0700) == 0 || errno == EEXIST))
		directory = openat(runtime, "events", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	fd = directory < 0 ? -1 : open_file(directory, step);
	if (fd < 0)
		fail_errno(f, "store-unusable", "start-up events in %s/events", runtime_path());
	if (directory >= 0)
		close(directory);
	return fd;
}

struct line {
	char text[3072];
	size_t used;
};

static void put(struct line *line, const char *key, const char *value)
{
	line->used += (size_t)snprintf(line->text + line->used, 64, "%s\"%s\":\"", line->used > 1 ? "," : "", key);
	for (; *value && line->used < sizeof line->text - 512; value++) {
		unsigned char c = (unsigned char)*value;
		/* Bytes beyond ASCII pass as Latin-1 escapes: a file name need not be UTF-8, JSON must be. */
		const char *format = c == '"' || c == '\\' ? "\\%c" : c < 0x20 || c >= 0x7f ? "\\u%04x" : "%c";

		line->used += (size_t)snprintf(line->text + line->used, 8, format, c);
	}
	line->text[line->used++] = '"';
}

static void put_number(struct line *line, const char *key, int64_t value)
{
	line->used += (size_t)snprintf(line->text + line->used, 64, "%s\"%s\":%" PRId64, line->used > 1 ? "," : "", key, value);
}

static void begin(struct line *line, const char *event, const struct launch *l)
{
	line->text[0] = '{';
	line->used = 1;
	put_number(line, "v", 1);
	put(line, "event", event);
	put(line, "launcher", l->step.launcher);
	put(line, "job", l->step.job);
	put(line, "step", l->step.id);
	put(line, "scope", l->step.scope);
	put(line, "node", l->step.node);
	put_number(line, "rank", l->step.rank);
	put(line, "image", l->request.reference);
}

/* A line that cannot be written (a full node) must not keep the rank from starting. */
static void end(struct line *line, int events)
{
	line->text[line->used++] = '}';
	line->text[line->used++] = '\n';
	if (write(events, line->text, line->used) < 0)
		return;
}

void events_write(int events, const struct launch *l)
{
	struct line line;

	if (events < 0)
		return;
	if (l->stamps.create_end) {
		begin(&line, "prepare", l);
		line.used += (size_t)snprintf(line.text + line.used, 160,
		                              ",\"phases\":[{\"name\":\"create\",\"start_ns\":%" PRId64 ",\"end_ns\":%" PRId64 "}]",
		                              l->stamps.create_start, l->stamps.create_end);
		end(&line, events);
	}
	begin(&line, "rank", l);
	put_number(&line, "local_rank", l->step.local_rank);
	put_number(&line, "pid", getpid());
	put(&line, "how", l->stamps.how);
	put_number(&line, "start_ns", l->stamps.start);
	put_number(&line, "found_ns", l->stamps.found);
	put_number(&line, "entered_ns", l->stamps.entered);
	put_number(&line, "exec_ns", clock_realtime_ns());
	end(&line, events);
	close(events);
}
