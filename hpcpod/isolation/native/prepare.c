/* SPDX-License-Identifier: Apache-2.0 */
/* The ranks of a node get a plan and a pod: there already, made by one of them, or made by each alone. */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static bool read_plan(const struct launch *l, struct record *record)
{
	struct fault ignored;
	char path[64];

	snprintf(path, sizeof path, "plans/%s", l->request.hash);
	if (record_read(l->runtime, path, record, &ignored) < 0)
		return false;
	if (record_is_current(record, l->stamps.start))
		return true;
	record_free(record);
	return false;
}

/* A current plan: the one on file, or a new one by Python. */
static int get_plan(struct launch *l, struct record *record, struct fault *f)
{
	char path[PATH_MAX];
	const char **words;
	size_t n = 0;
	int result;

	if (read_plan(l, record)) {
		l->stamps.how = "created";
		return 0;
	}
	snprintf(path, sizeof path, "%s/plans/%s", runtime_path(), l->request.hash);
	words = calloc((size_t)l->request.option_count + 6, sizeof *words);
	if (!words)
		return fail_errno(f, "prepare", "argument list");
	words[n++] = "-m";
	words[n++] = "hpcpod.launcher.prepare";
	words[n++] = path;
	words[n++] = l->step.scope;
	for (int i = 0; i < l->request.option_count; i++)
		words[n++] = l->request.options[i];
	words[n++] = l->request.reference;
	result = python_run(words, f);
	free(words);
	if (result < 0)
		return -1;
	l->stamps.how = "prepared";
	return read_plan(l, record) ? 0 : fail(f, EXIT_HPCPOD, "record", "%s: not valid right after it was made", path);
}

static int make_pod(struct launch *l, const char *name, int lock, struct fault *f)
{
	struct record record;
	int result;

	if (get_plan(l, &record, f) < 0)
		return -1;
	l->stamps.create_start = clock_realtime_ns();
	result = pod_hold(l->runtime, lock, name, &record, &l->step, f);
	l->stamps.create_end = clock_realtime_ns();
	record_free(&record);
	return result;
}

/* Join the pod of this name: 1 done, 0 there is none, -1 it must not be joined. */
static int try_join(struct launch *l, const char *name, struct fault *f)
{
	struct pod pod;
	char tree[32];

	if (!pod_find(l->runtime, name, &pod))
		return 0;
	snprintf(tree, sizeof tree, "/proc/%d/root", pod.pid);
	if (mpi_check(&pod.record, tree, l, f) < 0)
		return -1;
	l->stamps.found = clock_realtime_ns();
	if (pod_join(&pod)) {
		l->record = pod.record;
		pod.record = (struct record){0};
		pod_forget(&pod);
		l->stamps.entered = clock_realtime_ns();
		return 1;
	}
	pod_forget(&pod);
	return 0;
}

static int make_unless_made(struct launch *l, const char *name, int lock, bool again, struct fault *f)
{
	int code = lock_noted_failure(lock, l->stamps.start);
	struct pod pod;
	bool held = pod_find(l->runtime, name, &pod) && pod_is_held(&pod);

	pod_forget(&pod);
	if (held)
		return 0; /* made since this rank looked */
	if (code)
		return lock_end_like_winner(code, f);
	if (make_pod(l, name, lock, f) == 0)
		return 0;
	/* A kill says nothing about the next attempt; a second one does. */
	if (again || strcmp(f->slug, SLUG_KILLED) != 0)
		lock_note_failure(lock, f->code);
	return -1;
}

/* One round at the lock: 0 go on and try to join, -1 give up. */
static int make_or_wait(struct launch *l, const char *name, bool again, struct fault *f)
{
	int lock = lock_open(l->runtime, name, f), result = 0, code;

	if (lock < 0)
		return -1;
	switch (lock_take_turn(lock, again, f)) {
	case MY_TURN:
		result = make_unless_made(l, name, lock, again, f);
		break;
	case WAITED:
		l->stamps.how = "waited";
		code = lock_noted_failure(lock, l->stamps.start);
		if (code)
			result = lock_end_like_winner(code, f);
		break;
	case LOCK_FAILED:
		result = -1;
	}
	close(lock);
	return result;
}

static int enter_shared(struct launch *l, struct fault *f)
{
	char name[200];
	int joined;

	snprintf(name, sizeof name, "%s-%.40s-%s", l->step.scope, l->step.node, l->request.hash);
	l->stamps.how = "found";
	/* More rounds than one: a pod may end between being seen and being joined. */
	for (int round = 0; round < 8; round++) {
		joined = try_join(l, name, f);
		if (joined)
			return joined < 0 ? -1 : 0;
		if (make_or_wait(l, name, round > 0, f) < 0)
			return -1;
	}
	return fail(f, EXIT_HPCPOD, "pod", "pod %s: ends each time before it can be joined", name);
}

static int plan_alone(struct launch *l, struct fault *f)
{
	int lock, result;

	if (read_plan(l, &l->record)) {
		l->stamps.how = "created";
		return 0;
	}
	lock = lock_open(l->runtime, l->request.hash, f);
	if (lock < 0)
		return -1;
	result = lock_patiently(lock, LOCK_EX);
	if (result < 0)
		fail_errno(f, "store-unusable", "lock in %s", runtime_path());
	else
		result = get_plan(l, &l->record, f);
	close(lock);
	return result;
}

/* A lone process needs no holder: it makes the pod around itself, and the kernel clears up when it ends. */
static int enter_alone(struct launch *l, struct fault *f)
{
	int64_t planned;
	char path[48];
	int tree;

	if (plan_alone(l, f) < 0)
		return -1;
	planned = clock_realtime_ns();
	if (fuse_take(l->runtime, &l->record, &tree, f) < 0)
		return -1;
	snprintf(path, sizeof path, "/proc/%d/fd/%d", getpid(), tree);
	if (mpi_check(&l->record, path, l, f) < 0)
		return -1;
	/* the image's mount is a part of the pod; a look at the program is not */
	l->stamps.found = l->stamps.create_start = tree < 0 ? clock_realtime_ns() : planned;
	if (pod_make(&l->record, tree, f) < 0)
		return -1;
	l->stamps.create_end = l->stamps.entered = clock_realtime_ns();
	return 0;
}

int pod_enter(struct launch *launch, struct fault *f)
{
	if (launch->step.shared)
		return enter_shared(launch, f);
	return enter_alone(launch, f);
}
