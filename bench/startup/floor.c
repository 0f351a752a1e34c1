// SPDX-License-Identifier: Apache-2.0
/*
 * The least that a pod can cost: the namespaces, the mounts and the exec, and nothing else.
 *
 *   floor fresh ROOT MOUNT... -- PROG ARGS...   own namespaces, then PROG in them
 *   floor hold  ROOT MOUNT...                   the same, prints its pid, waits until it is killed
 *   floor join  PID PROG ARGS...                PROG in the namespaces of PID
 *
 * MOUNT: bind:SRC:DST, ro:SRC:DST (recursive binds) or tmpfs:DST.  ROOT is mounted read-only.  The caller is
 * mapped to itself; its capabilities in the new user namespace are dropped and no_new_privs is set, as hpcpod
 * and bubblewrap do.  There is no option, no configuration, no event, no check and no system call filter.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

static void die(const char *what, const char *of)
{
	fprintf(stderr, "floor: %s %s: %s\n", what, of, strerror(errno));
	exit(125);
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die("write", path);
	close(fd);
}

static void map_self(unsigned uid, unsigned gid)
{
	char text[64];

	write_file("/proc/self/setgroups", "deny");
	snprintf(text, sizeof text, "%u %u 1", uid, uid);
	write_file("/proc/self/uid_map", text);
	snprintf(text, sizeof text, "%u %u 1", gid, gid);
	write_file("/proc/self/gid_map", text);
}

/* One MOUNT below the current directory, which is the new root. */
static void apply(char *spec)
{
	char *colon = strchr(spec, ':');
	char *source, *target;
	unsigned long read_only;

	if (!colon)
		die("mount", spec);
	*colon = 0;
	source = colon + 1;
	if (!strcmp(spec, "tmpfs")) {
		if (mount("tmpfs", source + 1, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"))
			die("tmpfs", source);
		return;
	}
	read_only = strcmp(spec, "ro") ? 0 : MS_RDONLY;
	target = strchr(source, ':');
	if (!target)
		die("mount", source);
	*target++ = 0;
	if (mount(source, target + 1, NULL, MS_BIND | MS_REC, NULL))
		die("bind", source);
	if (read_only && mount(NULL, target + 1, NULL,
			       MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_RELATIME, NULL) &&
	    mount(NULL, target + 1, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_RELATIME, NULL))
		die("remount", source);
}

/* capset(2), version 3; spelled out because musl-gcc sees no kernel headers. */
static void drop(void)
{
	struct { unsigned version; int pid; } header = {0x20080522, 0};
	struct { unsigned effective, permitted, inheritable; } none[2] = {{0, 0, 0}, {0, 0, 0}};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_capset, &header, none))
		die("drop", "capabilities");
}

static void make(const char *root, char **mounts)
{
	unsigned uid = getuid(), gid = getgid();

	if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC))
		die("unshare", "user, mount and ipc namespaces");
	map_self(uid, gid);
	if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL))
		die("make slave", "/");
	/* Onto /mnt, not onto itself: a recursive bind of /var/tmp would else bring the whole pod along. */
	if (mount(root, "/mnt", NULL, MS_BIND, NULL) || chdir("/mnt"))
		die("bind", root);
	for (; *mounts && strcmp(*mounts, "--"); mounts++)
		apply(*mounts);
	if (mount(NULL, ".", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_RELATIME, NULL))
		die("remount", root);
	if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
		die("pivot to", root);
}

static void join(const char *pid)
{
	int fd = (int)syscall(SYS_pidfd_open, atoi(pid), 0);

	if (fd < 0 || setns(fd, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC))
		die("join", pid);
	close(fd);
}

int main(int argc, char **argv)
{
	char **program = argv + 3;

	if (argc >= 4 && !strcmp(argv[1], "join")) {
		join(argv[2]);
	} else if (argc >= 3 && !strcmp(argv[1], "hold")) {
		make(argv[2], argv + 3);
		printf("%d\n", (int)getpid());
		fflush(stdout);
		for (;;)
			pause();
	} else if (argc >= 5 && !strcmp(argv[1], "fresh")) {
		while (*program && strcmp(*program, "--"))
			program++;
		make(argv[2], argv + 3);
		program += *program != NULL;
	} else {
		fprintf(stderr, "usage: floor {fresh ROOT MOUNT... -- PROG...|hold ROOT MOUNT...|join PID PROG...}\n");
		return 125;
	}
	drop();
	execv(program[0], program);
	die("execute", program[0]);
}
