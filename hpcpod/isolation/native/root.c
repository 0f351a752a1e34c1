/* SPDX-License-Identifier: Apache-2.0 */
/* The pod's root: the tree of the image, under a memory layer where mount points are missing or it is to be writable. */
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

/* ------------------------------------------------------------------ mount points that the image lacks */

/* Make path in the scratch layer, with the modes that the image gives to the directories on the way. */
static int make_in_layer(const struct assembly *a, int layer, char *path, bool directory)
{
	for (char *slash = strchr(path + 1, '/');; slash = strchr(slash + 1, '/')) {
		struct stat s = {.st_mode = 0755};
		int there, made;

		if (slash)
			*slash = '\0';
		there = sys_open_in_root(a->tree, path);
		if (there >= 0 && (fstat(there, &s) < 0 || !S_ISDIR(s.st_mode)))
			s.st_mode = 0755; /* a file of the image that is hidden by the directory */
		if (there >= 0)
			close(there);
		if (slash || directory)
			made = mkdirat(layer, path + 1, s.st_mode & 07777);
		else if ((made = openat(layer, path + 1, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644)) >= 0)
			close(made);
		if (made < 0 && errno != EEXIST)
			return -1;
		if (!slash)
			return 0;
		*slash = '/';
	}
}

/* Path of an open descriptor below the image's tree: where a link in the image really leads. */
static int path_in_tree(const struct assembly *a, int fd, char *out, size_t size)
{
	char link[32], tree[PATH_MAX], full[PATH_MAX];
	ssize_t n, m;

	snprintf(link, sizeof link, "/proc/self/fd/%d", a->tree);
	n = readlink(link, tree, sizeof tree - 1);
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	m = readlink(link, full, sizeof full - 1);
	if (n < 0 || m < n || memcmp(full, tree, (size_t)n) != 0)
		return -1;
	full[m] = '\0';
	snprintf(out, size, "%s", full + n);
	return 0;
}

/* The mount point without links: the longest part that the image has, resolved, and the rest as it is. */
static int settle_target(const struct assembly *a, const char *target, char *out, size_t size)
{
	char part[PATH_MAX];
	size_t length = strlen(target);
	int fd, result;

	if (length >= sizeof part) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(part, target, length + 1);
	while ((fd = sys_open_in_root(a->tree, length ? part : "/")) < 0 && length > 0 && (errno == ENOENT || errno == ENOTDIR)) {
		while (length > 0 && part[--length] != '/')
			;
		part[length] = '\0';
	}
	if (fd < 0)
		return -1;
	result = path_in_tree(a, fd, out, size);
	close(fd);
	if (result == 0 && strlen(out) + strlen(target + length) >= size) {
		errno = ENAMETOOLONG;
		return -1;
	}
	if (result == 0)
		strcat(out, target + length);
	return result;
}

/* Whether target lies on or below something that an earlier operation mounts: then it is not the image's. */
static bool below_earlier(const struct assembly *a, size_t count, const char *target)
{
	for (size_t i = 0; i < count; i++)
		if (path_is_below(target, a->mounts[i].target))
			return true;
	return false;
}

static int make_mount_points(const struct assembly *a, int layer, bool *needed, struct fault *f)
{
	for (size_t i = 0; i < a->count; i++) {
		const struct mount *mount = &a->mounts[i];
		char path[PATH_MAX];
		int there = sys_open_in_root(a->tree, mount->target);

		if (there >= 0)
			close(there);
		if (there >= 0 || below_earlier(a, i, mount->target))
			continue;
		if (errno != ENOENT && errno != ENOTDIR)
			return fail_errno(f, "mount", "mount point %s in the image", mount->target);
		if (settle_target(a, mount->target, path, sizeof path) < 0)
			return fail_errno(f, "mount", "mount point %s in the image", mount->target);
		*needed = true;
		if (make_in_layer(a, layer, path, mount->directory) < 0)
			return fail_errno(f, "mount", "mount point %s", mount->target);
	}
	return 0;
}

/* ------------------------------------------------------------------ the root */

/* An empty directory of the user's own to hang the new root on; the pod's root is pivoted away from it. */
int open_mount_place(void)
{
	char path[PATH_MAX + 8];
	int fd;

	snprintf(path, sizeof path, "%s/mnt", runtime_path());
	fd = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT && (mkdir(path, 0700) == 0 || errno == EEXIST))
		fd = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd;
}

static int mount_scratch(struct assembly *a, const char *size, struct fault *f)
{
	int place = open_mount_place();
	int fs = sys_fsopen("tmpfs");

	if (fs < 0 || place < 0 || sys_fsconfig(fs, FSCONFIG_SET_STRING, "mode", "0755") < 0 ||
	    (size && sys_fsconfig(fs, FSCONFIG_SET_STRING, "size", size) < 0) ||
	    sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL) < 0 ||
	    (a->scratch = sys_fsmount(fs, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)) < 0 ||
	    sys_move_mount(a->scratch, place) < 0)
		return fail_errno(f, "mount", "memory file system for the pod");
	close(fs);
	close(place);
	if (mkdirat(a->scratch, "layer", 0755) < 0 || mkdirat(a->scratch, "work", 0755) < 0 ||
	    mkdirat(a->scratch, "root", 0755) < 0)
		return fail_errno(f, "mount", "memory file system for the pod");
	return 0;
}

/* An overlay of the scratch layer over the image: as upper layer if the pod is writable, else as another lower.
 * Its source in the mount table is the mark of the image's entry, by which `hpcpod image rm` knows one in use. */
static int overlay_root(const struct assembly *a, const char *mark, bool writable, struct fault *f)
{
	char layer[64], tree[64], lower[160], work[64];
	int fs = sys_fsopen("overlay"), mounted;
	bool ok;

	/* Descriptors as paths: no escaping of ':' and ',' in them, and what was opened is what is mounted. */
	snprintf(layer, sizeof layer, "/proc/self/fd/%d/layer", a->scratch);
	snprintf(work, sizeof work, "/proc/self/fd/%d/work", a->scratch);
	snprintf(tree, sizeof tree, "/proc/self/fd/%d", a->tree);
	snprintf(lower, sizeof lower, "%s%s%s", writable ? "" : layer, writable ? "" : ":", tree);
	ok = fs >= 0 && sys_fsconfig(fs, FSCONFIG_SET_STRING, "source", mark ? mark : "hpcpod") == 0 &&
	     sys_fsconfig(fs, FSCONFIG_SET_FLAG, "userxattr", NULL) == 0 &&
	     sys_fsconfig(fs, FSCONFIG_SET_STRING, "lowerdir", lower) == 0;
	if (ok && writable)
		ok = sys_fsconfig(fs, FSCONFIG_SET_STRING, "upperdir", layer) == 0 &&
		     sys_fsconfig(fs, FSCONFIG_SET_STRING, "workdir", work) == 0;
	ok = ok && sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL) == 0;
	mounted = ok ? sys_fsmount(fs, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (writable ? 0 : MOUNT_ATTR_RDONLY)) : -1;
	if (mounted < 0) {
		fail_errno(f, "kernel-feature", "overlay over the image");
		fault_hint(f, "Linux 5.11 or newer mounts overlays without root; is the overlay module loaded?");
	}
	if (fs >= 0)
		close(fs);
	return mounted;
}

static int bind_root(const struct assembly *a, struct fault *f)
{
	int mounted = sys_open_tree(a->tree, "", OPEN_TREE_CLONE | AT_EMPTY_PATH);

	if (mounted < 0 || sys_mount_setattr(mounted, false, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV) < 0)
		return fail_errno(f, "mount", "the image's tree");
	return mounted;
}

/*
 * The entry of the image in its store has been used: the directory that holds the tree or the file.  By name, entries
 * of a store are told from other directories; by its time the store knows what nobody has used for long.  Best effort:
 * the site's store belongs to somebody else.
 */
void mark_used(const char *path)
{
	char entry[PATH_MAX];
	size_t length = strlen(path);
	const char *name;

	while (length > 1 && path[length - 1] != '/')
		length--;
	if (length < 2 || length > sizeof entry)
		return;
	memcpy(entry, path, length - 1);
	entry[length - 1] = '\0';
	name = strrchr(entry, '/');
	if (name && (!strncmp(name, "/sha256-", 8) || !strncmp(name, "/sha512-", 8)) &&
	    utimensat(AT_FDCWD, entry, NULL, AT_SYMLINK_NOFOLLOW) < 0)
		return;
}

/* The image's tree: a directory of the node, or a mount that hangs nowhere yet and must, for what is to come. */
static int open_tree_of_image(const struct record *record, struct assembly *a, struct fault *f)
{
	const char *path = record_word(record, OP_ROOTFS);
	size_t length = path ? strlen(path) : 0;
	int place;

	if (path) {
		a->tree = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (a->tree < 0)
			return fail_errno(f, "image-not-found", "unpacked image %s", path);
		if (length > 7 && !strcmp(path + length - 7, "/rootfs"))
			mark_used(path);
		return 0;
	}
	place = mkdirat(a->scratch, "image", 0755) < 0 ? -1 : openat(a->scratch, "image", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (place < 0 || sys_move_mount(a->tree, place) < 0)
		return fail_errno(f, "mount", "the image's tree");
	close(place);
	return 0;
}

/* Mount the image (as it is, or below a memory layer) and leave its descriptor in a->root. */
int make_root(const struct record *record, struct assembly *a, struct fault *f)
{
	const char *size = record_word(record, OP_WRITABLE);
	bool layered = size != NULL;
	struct stat root;
	int layer, mounted, place;

	if (list_mounts(record, a, f) < 0)
		return -1;
	if (mount_scratch(a, size, f) < 0 || open_tree_of_image(record, a, f) < 0)
		return -1;
	layer = openat(a->scratch, "layer", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (layer < 0 || make_mount_points(a, layer, &layered, f) < 0)
		return layer < 0 ? fail_errno(f, "mount", "memory file system for the pod") : -1;
	close(layer);
	mounted = layered ? overlay_root(a, record_word(record, OP_DIGEST), size != NULL, f) : bind_root(a, f);
	place = openat(a->scratch, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (mounted < 0)
		return -1;
	if (place < 0 || sys_move_mount(mounted, place) < 0)
		return fail_errno(f, "mount", "the pod's root");
	close(place);
	if (fstat(mounted, &root) < 0)
		return fail_errno(f, "mount", "the pod's root");
	a->root = mounted;
	a->root_device = root.st_dev;
	a->root_inode = root.st_ino;
	return 0;
}
