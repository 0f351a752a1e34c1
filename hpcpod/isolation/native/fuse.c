/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A packed image without root: one FUSE server and one mount for all pods of a user on a node (docs/adr/0006).
 *
 * RUNTIME/mounts/NAME is held like a pod (hold.c).  The holder has user and mount namespaces of its own, whose root is
 * the image; a pod takes a copy of that mount.  The server is outside of them, so that the mount ends with the last
 * process that uses it, and the server with the mount.
 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A mount that nobody uses stays for a while: runs one after another need not make it each time. */
enum { LINGER_MS = 1000 };

/* ------------------------------------------------------------------ its name */

/*
 * The control groups by which a scheduler ends a step, as text: cgroup v2, and what Slurm and PBS use of v1.  Tasks of
 * a step end together.
 */
static void read_groups(char *out, size_t size)
{
	char text[8192], *rest = text;
	int fd = open("/proc/self/cgroup", O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
	size_t used = 0;

	if (fd >= 0)
		close(fd);
	text[length > 0 ? length : 0] = '\0';
	out[0] = '\0';
	for (char *line; (line = strsep(&rest, "\n"));) {
		char *task = strstr(line, "/task_");

		if (task)
			*task = '\0';
		if (strstr(line, "::") || strstr(line, "freezer") || strstr(line, "cpuset"))
			used += (size_t)snprintf(out + used, size - used, "%s\n", line);
		if (used >= size)
			return;
	}
}

/*
 * One mount for each file: the site's and the user's store may both have the image, and each was verified by itself.
 * What a scheduler kills at the end of one step must not hold the mount of another: one for each control group.  The
 * kernel lets in only who has the user and the group of the mounter (fuse(4) without allow_other), and only who is in
 * the user namespace above it can enter its holder's.
 */
static int name_mount(const struct op *fuse, char *out, size_t size, struct fault *f)
{
	const char *name = fuse->word[3];
	char groups[8192], group[16], user[64] = "", hash[HASH_SIZE];

	if (!name[0] || name[0] == '.' || strchr(name, '/') || strlen(name) > 160)
		return fail(f, EXIT_HPCPOD, "record", "sealed record: name %.200s of a mount", name);
	read_groups(groups, sizeof groups);
	snprintf(group, sizeof group, "%u", getegid());
	if (readlink("/proc/self/ns/user", user, sizeof user - 1) < 0)
		user[0] = '\0';
	hash_words((const char *const[]){fuse->word[1], fuse->word[2], groups, group, user, NULL}, hash);
	snprintf(out, size, "%s-%.12s", name, hash);
	return 0;
}

/* ------------------------------------------------------------------ making it */

static int open_image(const struct op *fuse, struct fault *f)
{
	int fd = open(fuse->word[0], O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat s;

	if (fd < 0 || fstat(fd, &s) < 0)
		return fail_errno(f, "image-not-found", "packed image %s", fuse->word[0]);
	if (!S_ISREG(s.st_mode) || strtoull(fuse->word[1], NULL, 10) != s.st_dev || strtoull(fuse->word[2], NULL, 10) != s.st_ino) {
		fail(f, EXIT_HPCPOD, "image-not-found", "packed image %s: not the file that was verified", fuse->word[0]);
		fault_hint(f, "start it again: another process replaced the image meanwhile");
		return -1;
	}
	return fd;
}

/* The kernel demands that the namespace in which the device was opened is the one that mounts. */
static int open_device(struct fault *f)
{
	int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);

	if (fd >= 0)
		return fd;
	fail_errno(f, "kernel-feature", "/dev/fuse");
	fault_hint(f, "hpcpod run --rootfs=dir does without it; the site lets users mount images by modprobe fuse and mode 0666");
	return -1;
}

/*
 * mark: the source in mount tables, by which `hpcpod image rm` knows an image in use.  default_permissions: the kernel
 * checks modes; the user is the owner of all, whom the image's files call 0.
 */
static int mount_image(int device, const char *mark, struct fault *f)
{
	char number[16];
	int fs = sys_fsopen("fuse"), mounted = -1;

	snprintf(number, sizeof number, "%d", device);
	if (fs >= 0 && sys_fsconfig(fs, FSCONFIG_SET_STRING, "source", mark ? mark : "hpcpod") == 0 &&
	    sys_fsconfig(fs, FSCONFIG_SET_STRING, "subtype", "squashfuse") == 0 &&
	    sys_fsconfig(fs, FSCONFIG_SET_STRING, "fd", number) == 0 &&
	    sys_fsconfig(fs, FSCONFIG_SET_STRING, "rootmode", "40000") == 0 &&
	    sys_fsconfig(fs, FSCONFIG_SET_STRING, "user_id", "0") == 0 &&
	    sys_fsconfig(fs, FSCONFIG_SET_STRING, "group_id", "0") == 0 &&
	    sys_fsconfig(fs, FSCONFIG_SET_FLAG, "default_permissions", NULL) == 0 &&
	    sys_fsconfig(fs, FSCONFIG_SET_FLAG, "ro", NULL) == 0 &&
	    sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL) == 0)
		mounted = sys_fsmount(fs, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
	if (mounted < 0) {
		fail_errno(f, "kernel-feature", "FUSE mount of the image");
		fault_hint(f, "Linux 4.18 or newer mounts FUSE without root; hpcpod run --rootfs=dir does without it");
	}
	if (fs >= 0)
		close(fs);
	return mounted;
}

/* The first answer of the server, or what it said before it ended. */
static int await_server(const struct op *fuse, int mounted, int said, struct fault *f)
{
	char text[200] = "";
	struct statfs s;
	ssize_t length;

	if (fstatfs(mounted, &s) == 0)
		return 0;
	length = read(said, text, sizeof text - 1);
	text[length > 0 ? length : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	if (!text[0])
		return fail(f, EXIT_HPCPOD, SLUG_KILLED, "packed image %s: %s was killed", fuse->word[0], fuse->word[4]);
	return fail(f, EXIT_HPCPOD, "mount", "packed image %s: %s ended: %s", fuse->word[0], fuse->word[4], text);
}

/* In the holder: the image becomes the root of namespaces of its own. */
static int make_mount(int runtime, const struct record *record, int *vital, struct fault *f)
{
	const struct op *fuse = record_op(record, OP_FUSE);
	int image = open_image(fuse, f), device, mounted, place, said;

	(void)runtime;
	if (image < 0 || namespaces_make(CLONE_NEWUSER | CLONE_NEWNS, 0, 0, f) < 0)
		return -1;
	device = open_device(f);
	mounted = device < 0 ? -1 : mount_image(device, record_word(record, OP_DIGEST), f);
	if (mounted < 0)
		return -1;
	*vital = server_start(fuse, image, device, &said, f);
	close(image);
	close(device); /* the server's alone, so that its end is the connection's */
	if (*vital < 0 || await_server(fuse, mounted, said, f) < 0)
		return -1;
	close(said);
	place = open_mount_place();
	if (place < 0 || sys_move_mount(mounted, place) < 0)
		return fail_errno(f, "mount", "the image's tree");
	close(place);
	if (root_enter(mounted, f) < 0)
		return -1;
	close(mounted);
	return 0;
}

/* ------------------------------------------------------------------ taking it */

struct copy {
	int holder, tree, error;
};

/* In a child that shares memory and descriptors with this process, but no namespaces from here on. */
static int copy_root(void *argument)
{
	struct copy *copy = argument;

	if (setns(copy->holder, CLONE_NEWUSER | CLONE_NEWNS) == 0)
		copy->tree = sys_open_tree(AT_FDCWD, "/", OPEN_TREE_CLONE);
	copy->error = errno;
	_exit(0);
}

/* A copy of the holder's root that hangs nowhere; -1 also where the holder is gone. */
static int take_copy(int holder)
{
	static _Alignas(16) char stack[16384];
	struct copy copy = {.holder = holder, .tree = -1};
	pid_t child = clone(copy_root, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD, &copy);

	while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	if (child > 0)
		errno = copy.error;
	return copy.tree;
}

enum taken { TAKEN, NOT_THERE, DEAD };

static enum taken try_take(int runtime, const char *name, int *tree)
{
	enum taken result = NOT_THERE;
	struct pod mount;
	struct statfs s;

	if (!holder_find(runtime, "mounts", name, &mount))
		return NOT_THERE;
	if (holder_tell(&mount) && (*tree = take_copy(mount.holder)) >= 0)
		/* asks the server, as nothing does that the kernel has kept */
		result = fstatfs(*tree, &s) == 0 ? TAKEN : DEAD;
	if (result == DEAD) {
		close(*tree);
		*tree = -1;
	}
	pod_forget(&mount);
	return result;
}

/* One round at the lock: 0 go on and try to take it, -1 give up. */
static int make_or_wait(int runtime, const char *name, const struct record *record, bool again, struct fault *f)
{
	const struct kept kept = {.room = "mounts", .name = name, .process = "hpcpod-mount", .record = record,
	                          .linger_ms = LINGER_MS, .make = make_mount};
	char lock_name[256];
	struct pod mount;
	enum turn turn;
	int lock, result = 0;

	snprintf(lock_name, sizeof lock_name, "mount-%s", name);
	lock = lock_open(runtime, lock_name, f);
	if (lock < 0)
		return -1;
	turn = lock_take_turn(lock, again, f);
	if (turn == MY_TURN) {
		bool held = holder_find(runtime, "mounts", name, &mount) && pod_is_held(&mount);

		pod_forget(&mount);
		if (!held && hold(runtime, lock, &kept, f) < 0)
			/* a kill says nothing about the next attempt; a second one does */
			result = !again && !strcmp(f->slug, SLUG_KILLED) ? 0 : -1;
	}
	close(lock);
	return turn == LOCK_FAILED ? -1 : result;
}

/*
 * A copy of the image's one mount, for pod_make, and this process as its member; *tree is -1 where the record has a
 * directory of the node.  In the namespaces of the user: a pod's own lead to no holder.
 */
int fuse_take(int runtime, const struct record *record, int *tree, struct fault *f)
{
	const struct op *fuse = record_op(record, OP_FUSE);
	char name[200];

	*tree = -1;
	if (!fuse)
		return 0;
	if (name_mount(fuse, name, sizeof name, f) < 0)
		return -1;
	for (int round = 0; round < 16; round++) {
		enum taken taken = try_take(runtime, name, tree);

		if (taken == TAKEN) {
			mark_used(fuse->word[0]);
			return 0;
		}
		if (taken == DEAD) /* its server was killed; the holder takes the name away when it sees that */
			nanosleep(&(struct timespec){.tv_nsec = 20 * 1000000L}, NULL);
		else if (make_or_wait(runtime, name, record, round > 0, f) < 0)
			return -1;
	}
	return fail(f, EXIT_HPCPOD, SLUG_KILLED, "mount of %s: ends each time before it can be used", fuse->word[0]);
}
