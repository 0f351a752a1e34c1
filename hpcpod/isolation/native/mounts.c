/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is mounted on the pod's root.
 *
 * Every target is resolved inside the new root (openat2, RESOLVE_IN_ROOT) and mounted by descriptor: a link in
 * the image, /dev -> /host/path say, can redirect a mount to another place of the image, never to the node.
 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

/* ------------------------------------------------------------------ which mounts there are */

/* A plain absolute path below the root: "." and ".." would lead elsewhere than the name says. */
static bool is_plain(const char *path)
{
	const char *last = strrchr(path, '/');

	return path[0] == '/' && path[1] && !strstr(path, "//") && !strstr(path, "/./") && !strstr(path, "/../") &&
	       strcmp(last, "/.") != 0 && strcmp(last, "/..") != 0;
}

/* Whether path is this directory or lies below it, component by component. */
bool path_is_below(const char *path, const char *directory)
{
	size_t length = strlen(directory);

	return !strncmp(path, directory, length) && (path[length] == '/' || !path[length]);
}

/* Whether a directory of the node at this path would hide files of the image. */
static bool is_shielded(const struct record *record, const char *path)
{
	bool shielded = false;

	for (size_t i = 0; i < record->count; i++) {
		const struct op *op = &record->ops[i];

		if (op->kind == OP_TMPFS && path_is_below(path, op->word[0]))
			return !strcmp(path, op->word[0]); /* the pod's own; a directory in it is made */
		if (op->kind == OP_SHIELD)
			shielded |= !strcmp(op->word[1], "whole") ? !strcmp(path, op->word[0]) : path_is_below(path, op->word[0]);
	}
	return shielded;
}

static int source_fault(const struct mount *mount, struct fault *f)
{
	fail_errno(f, "bind-source", "bind source %s", mount->source);
	fault_hint(f, "the path must exist on this node and be open to you");
	return -1;
}

/* A copy of the source with all below it: mounts of the parent namespace are locked to their submounts
 * (mount_namespaces(7)). */
static int take_source(struct mount *mount)
{
	mount->tree = sys_open_tree(AT_FDCWD, mount->source, OPEN_TREE_CLONE | AT_RECURSIVE);
	return mount->tree < 0 ? -1 : 0;
}

/*
 * 1: there, 0: not there and optional, -1: fault.  A source that holds the place where the new root will be hung
 * is taken now, before that mount is made and would come along; the others later, one descriptor at a time.
 */
static int find_source(struct mount *mount, const char *source, bool optional, struct fault *f)
{
	struct stat s;

	mount->source = source;
	if (stat(source, &s) < 0)
		return optional ? 0 : source_fault(mount, f);
	mount->directory = S_ISDIR(s.st_mode);
	if (path_is_below(runtime_path(), source) && take_source(mount) < 0)
		return source_fault(mount, f);
	return 1;
}

/*
 * The directory that a variable of the rank names, at its own path.  Passed over: what is no plain absolute path
 * (".." and "." lead elsewhere), no directory, or belongs to the image (OP_SHIELD), unless the pod has a memory
 * file system of its own there.
 */
static int place_from_env(const struct record *record, struct mount *mount, struct fault *f)
{
	const char *value = getenv(mount->op->word[0]);
	size_t length = value ? strlen(value) : 0;
	int found;

	while (length > 1 && value[length - 1] == '/')
		length--;
	mount->target = mount->named = value ? strndup(value, length) : NULL;
	if (!mount->named || !is_plain(mount->named) || is_shielded(record, mount->named))
		return 0;
	found = find_source(mount, mount->named, true, f);
	return found > 0 && !mount->directory ? 0 : found;
}

/* Fill in one operation.  1: a mount, 0: none, or passed over on this node, -1: fault. */
static int place(const struct record *record, const struct op *op, struct mount *mount, struct fault *f)
{
	*mount = (struct mount){.op = op, .target = op->word[0], .directory = true, .tree = -1};
	switch (op->kind) {
	case OP_TMPFS:
		return 1;
	case OP_FILE:
		mount->directory = false;
		return 1;
	case OP_BIND_ENV:
		return place_from_env(record, mount, f);
	case OP_BIND:
		mount->target = op->word[1];
		return find_source(mount, op->word[0], strstr(op->word[2], "optional"), f);
	default:
		return 0;
	}
}

int list_mounts(const struct record *record, struct assembly *a, struct fault *f)
{
	a->mounts = calloc(record->count, sizeof *a->mounts);
	if (!a->mounts)
		return fail_errno(f, "mount", "list of mounts");
	for (size_t i = 0; i < record->count; i++) {
		int placed = place(record, &record->ops[i], &a->mounts[a->count], f);

		if (placed <= 0)
			free(a->mounts[a->count].named);
		if (placed < 0)
			return -1;
		a->count += (size_t)placed;
	}
	return 0;
}

/* ------------------------------------------------------------------ one mount each */

/* A directory in a memory file system that this pod mounted before (TMPDIR=/dev/shm/job, say): it is made. */
static void make_in_tmpfs(const struct assembly *a, const char *target)
{
	for (size_t i = 0; i < a->count; i++) {
		size_t length = strlen(a->mounts[i].target);
		char rest[PATH_MAX];
		int dir;

		if (a->mounts[i].op->kind != OP_TMPFS || strncmp(a->mounts[i].target, target, length) || target[length] != '/')
			continue;
		dir = sys_open_in_root(a->root, a->mounts[i].target);
		snprintf(rest, sizeof rest, "%s", target + length + 1);
		for (char *slash = strchr(rest, '/'); slash; slash = strchr(slash + 1, '/')) {
			*slash = '\0';
			mkdirat(dir, rest, 0755);
			*slash = '/';
		}
		mkdirat(dir, rest, 0755);
		close(dir);
	}
}

/* setns(2) enters what lies on top of the root: nothing may be mounted there. */
static bool is_root(const struct assembly *a, int place)
{
	struct stat here;

	return fstat(place, &here) == 0 && here.st_dev == a->root_device && here.st_ino == a->root_inode;
}

static int attach(const struct assembly *a, int mounted, const char *target, struct fault *f)
{
	int place = sys_open_in_root(a->root, target);

	if (place < 0 && errno == ENOENT) {
		make_in_tmpfs(a, target);
		place = sys_open_in_root(a->root, target);
	}
	if (place < 0)
		return fail_errno(f, "mount", "mount on %s", target);
	if (is_root(a, place)) {
		fail(f, EXIT_HPCPOD, "mount", "mount on %s: leads to the root of the image, which it would hide", target);
		fault_hint(f, "a link in the image points there; a pod needs %s as a directory of its own", target);
		return -1;
	}
	if (sys_move_mount(mounted, place) < 0) {
		fail_errno(f, "mount", "mount on %s", target);
		fault_hint(f, "a directory goes on a directory, a file on a file: what has the image there?");
		return -1;
	}
	close(place);
	close(mounted);
	return 0;
}

static int bind(const struct assembly *a, struct mount *mount, const char *flags, struct fault *f)
{
	uint64_t set = MOUNT_ATTR_NOSUID | (strstr(flags, "ro") ? MOUNT_ATTR_RDONLY : 0);

	if (mount->tree < 0 && take_source(mount) < 0)
		return source_fault(mount, f);
	if (sys_mount_setattr(mount->tree, true, set) < 0)
		return fail_errno(f, "mount", "bind on %s", mount->target);
	return attach(a, mount->tree, mount->target, f);
}

static int mount_tmpfs(const struct assembly *a, const struct op *op, struct fault *f)
{
	int fs = sys_fsopen("tmpfs"), mounted = -1;
	bool sized = strcmp(op->word[2], "0") != 0;

	if (fs >= 0 && sys_fsconfig(fs, FSCONFIG_SET_STRING, "mode", op->word[1]) == 0 &&
	    (!sized || sys_fsconfig(fs, FSCONFIG_SET_STRING, "size", op->word[2]) == 0) &&
	    sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL) == 0)
		mounted = sys_fsmount(fs, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
	if (mounted < 0)
		return fail_errno(f, "mount", "memory file system on %s", op->word[0]);
	close(fs);
	return attach(a, mounted, op->word[0], f);
}

static int mount_file(struct assembly *a, const struct op *op, struct fault *f)
{
	char name[24];
	size_t size = strlen(op->word[1]);
	ssize_t written = -1;
	int fd, mounted;

	snprintf(name, sizeof name, "file%u", a->files++);
	fd = openat(a->scratch, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0444);
	if (fd >= 0)
		written = write(fd, op->word[1], size);
	if (written >= 0 && (size_t)written < size) {
		errno = ENOSPC; /* of part of a write, which is no error yet, there is no other cause here */
		written = -1;
	}
	if (written < 0) {
		fail_errno(f, "mount", "generated %s", op->word[0]);
		if (errno == ENOSPC)
			fault_hint(f, "the pod's memory layer is full: --writable-size SIZE makes it larger (512M, 2G)");
		return -1;
	}
	close(fd);
	mounted = sys_open_tree(a->scratch, name, OPEN_TREE_CLONE);
	if (mounted < 0 || sys_mount_setattr(mounted, false, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV) < 0)
		return fail_errno(f, "mount", "generated %s", op->word[0]);
	return attach(a, mounted, op->word[0], f);
}

int apply_mount(struct assembly *a, struct mount *mount, struct fault *f)
{
	const struct op *op = mount->op;

	switch (op->kind) {
	case OP_BIND:
		return bind(a, mount, op->word[2], f);
	case OP_BIND_ENV:
		return bind(a, mount, "", f);
	case OP_TMPFS:
		return mount_tmpfs(a, op, f);
	case OP_FILE:
		return mount_file(a, op, f);
	default:
		return fail(f, EXIT_HPCPOD, "record", "sealed record: operation %d is no mount", (int)op->kind);
	}
}
