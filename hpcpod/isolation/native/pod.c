/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t written = fd < 0 ? -1 : write(fd, text, strlen(text));
	int error = errno;

	if (fd >= 0)
		close(fd);
	errno = error;
	return written < 0 ? -1 : 0;
}

static const char *why_no_user_namespace(void)
{
	switch (errno) {
	case ENOSPC:
		return "raise user.max_user_namespaces (sysctl); it is 0 where a site switched user namespaces off";
	case EPERM:
		return "unprivileged user namespaces are off: see kernel.unprivileged_userns_clone, or "
		       "kernel.apparmor_restrict_unprivileged_userns (sysctl)";
	case EINVAL:
		return "the process has threads, or the kernel was built without user namespaces";
	default:
		return "hpcpod doctor shows what this node lacks";
	}
}

/*
 * The user is mapped, and nobody else is: no set-uid program and no subuid range is needed.
 * setgroups is denied first, as the kernel demands (user_namespaces(7)); supplementary groups stay in force.
 */
static int map_self(uid_t uid, gid_t gid, uid_t own_uid, gid_t own_gid, struct fault *f)
{
	char line[64];

	if (write_file("/proc/self/setgroups", "deny") < 0)
		return fail_errno(f, "kernel-feature", "/proc/self/setgroups");
	snprintf(line, sizeof line, "%u %u 1\n", uid, own_uid);
	if (write_file("/proc/self/uid_map", line) < 0)
		return fail_errno(f, "kernel-feature", "/proc/self/uid_map");
	snprintf(line, sizeof line, "%u %u 1\n", gid, own_gid);
	if (write_file("/proc/self/gid_map", line) < 0)
		return fail_errno(f, "kernel-feature", "/proc/self/gid_map");
	return 0;
}

/* New namespaces of these kinds, user and mount among them; uid and gid: what the user is called in them. */
int namespaces_make(int kinds, uid_t uid, gid_t gid, struct fault *f)
{
	uid_t own_uid = geteuid();
	gid_t own_gid = getegid();

	if (unshare(kinds) < 0) {
		const char *hint = why_no_user_namespace();

		fail_errno(f, "kernel-feature", "user, mount and IPC namespaces");
		fault_hint(f, "%s", hint);
		return -1;
	}
	if (map_self(uid, gid, own_uid, own_gid, f) < 0)
		return -1;
	/* Slave, not private: when the node unmounts a file system, the pod must not keep it busy. */
	if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
		return fail_errno(f, "mount", "propagation of /");
	return 0;
}

/* Make the mount that this descriptor is the root of the root of this process and of its mount namespace. */
int root_enter(int root, struct fault *f)
{
	if (fchdir(root) < 0 || sys_pivot_root_here() < 0)
		return fail_errno(f, "mount", "pivot_root into the image");
	/* The old root lies on top now, and the working directory is in it. */
	if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return fail_errno(f, "mount", "detaching the node's root");
	return 0;
}

/*
 * Make the record's pod around this process, which must have one thread.  On success / is the pod's root.
 * tree: the image, where it is a mount that hangs nowhere yet (fuse.c), else -1.
 */
int pod_make(const struct record *record, int tree, struct fault *f)
{
	struct assembly a = {.tree = tree, .root = -1, .scratch = -1};
	mode_t mask = umask(0); /* modes of mount points are the plan's */
	bool made = namespaces_make(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC, geteuid(), getegid(), f) == 0 &&
	            make_root(record, &a, f) == 0;

	for (size_t i = 0; made && i < a.count; i++)
		made = apply_mount(&a, &a.mounts[i], f) == 0;
	made = made && root_enter(a.root, f) == 0;
	umask(mask);
	for (size_t i = 0; i < a.count; i++)
		free(a.mounts[i].named);
	free(a.mounts);
	if (!made)
		return -1;
	close(a.tree);
	close(a.root);
	close(a.scratch);
	return 0;
}
