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
 * The user is mapped to itself and nobody else is: no set-uid program and no subuid range is needed.
 * setgroups is denied first, as the kernel demands (user_namespaces(7)); supplementary groups stay in force.
 */
static int map_self(uid_t uid, gid_t gid, struct fault *f)
{
	char line[64];

	if (write_file("/proc/self/setgroups", "deny") < 0)
		return fail_errno(f, "kernel-feature", "/proc/self/setgroups");
	snprintf(line, sizeof line, "%u %u 1\n", uid, uid);
	if (write_file("/proc/self/uid_map", line) < 0)
		return fail_errno(f, "kernel-feature", "/proc/self/uid_map");
	snprintf(line, sizeof line, "%u %u 1\n", gid, gid);
	if (write_file("/proc/self/gid_map", line) < 0)
		return fail_errno(f, "kernel-feature", "/proc/self/gid_map");
	return 0;
}

static int make_namespaces(struct fault *f)
{
	uid_t uid = geteuid();
	gid_t gid = getegid();

	if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC) < 0) {
		const char *hint = why_no_user_namespace();

		fail_errno(f, "kernel-feature", "user, mount and IPC namespaces");
		fault_hint(f, "%s", hint);
		return -1;
	}
	if (map_self(uid, gid, f) < 0)
		return -1;
	/* Slave, not private: when the node unmounts a file system, the pod must not keep it busy. */
	if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
		return fail_errno(f, "mount", "propagation of /");
	return 0;
}

static int enter_root(const struct assembly *a, struct fault *f)
{
	if (fchdir(a->root) < 0 || sys_pivot_root_here() < 0)
		return fail_errno(f, "mount", "pivot_root into the image");
	/* The old root lies on top now, and the working directory is in it. */
	if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return fail_errno(f, "mount", "detaching the node's root");
	return 0;
}

/* Make the record's pod around this process, which must have one thread.  On success / is the pod's root. */
int pod_make(const struct record *record, struct fault *f)
{
	struct assembly a = {.tree = -1, .root = -1, .scratch = -1};
	mode_t mask = umask(0); /* modes of mount points are the plan's */
	bool made = make_namespaces(f) == 0 && make_root(record, &a, f) == 0;

	for (size_t i = 0; made && i < a.count; i++)
		made = apply_mount(&a, &a.mounts[i], f) == 0;
	made = made && enter_root(&a, f) == 0;
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
