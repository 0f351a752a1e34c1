// SPDX-License-Identifier: Apache-2.0
/*
 * The least that writing a tree can cost: a tar reader that trusts its archive.
 *
 *   floor DIR TAR...   makes DIR and writes each uncompressed archive below it, lowest layer first
 *
 * Prints three numbers: seconds of CPU and of the clock from the first header to the last, and seconds of the
 * clock that syncfs(2) takes afterwards.  The archives are mapped and read in beforehand, so that their bytes
 * are in memory already.  No path is checked, nothing is verified; devices are left out, a whiteout removes
 * what it names, pax headers count for nothing but path and linkpath.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 512
#define LONGEST 4096

/* The directory that the last entry went to; the next one mostly goes there, too. */
static char parent[LONGEST];
static int parent_fd = -1;

static void die(const char *what, const char *of)
{
	fprintf(stderr, "floor: %s %s: %s\n", what, of, strerror(errno));
	exit(1);
}

static double seconds(struct timespec from, struct timespec to)
{
	return (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
}

static double cpu(void)
{
	struct rusage used;

	getrusage(RUSAGE_SELF, &used);
	return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
	       (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* Replaces the value of a pax record, if there is one of that key. */
static void take_pax(const char *at, size_t size, const char *key, char *value)
{
	const char *end = at + size;

	while (at < end) {
		char *after;
		long length = strtol(at, &after, 10);
		const char *equals = memchr(at, '=', (size_t)(end - at));

		if (length <= 0 || !equals)
			return;
		if ((size_t)(equals - after - 1) == strlen(key) && !strncmp(after + 1, key, strlen(key)))
			snprintf(value, LONGEST, "%.*s", (int)(at + length - 1 - equals - 1), equals + 1);
		at += length;
	}
}

/* Opens the parent of a path, made where it is missing; returns the last component. */
static const char *enter(char *path)
{
	char *slash = strrchr(path, '/');
	char *name = slash ? slash + 1 : path;
	char above[LONGEST];

	snprintf(above, sizeof above, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
	if (parent_fd >= 0 && !strcmp(above, parent))
		return name;
	if (parent_fd >= 0)
		close(parent_fd);
	parent_fd = open(above, O_PATH | O_DIRECTORY | O_CLOEXEC);
	for (char *at = above; parent_fd < 0 && (at = strchr(at + 1, '/'));) {
		*at = '\0';
		mkdir(above, 0755);
		*at = '/';
	}
	if (parent_fd < 0) {
		mkdir(above, 0755);
		parent_fd = open(above, O_PATH | O_DIRECTORY | O_CLOEXEC);
	}
	if (parent_fd < 0)
		die("open", above);
	strcpy(parent, above);
	return name;
}

static void write_file(const char *name, mode_t mode, const char *data, size_t size, const struct timespec *times)
{
	const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
	int fd = openat(parent_fd, name, flags, mode);

	if (fd < 0 && errno == EEXIST && !unlinkat(parent_fd, name, 0))
		fd = openat(parent_fd, name, flags, mode);
	if (fd < 0)
		die("open", name);
	while (size) {
		ssize_t written = write(fd, data, size);

		if (written < 0)
			die("write", name);
		data += written;
		size -= (size_t)written;
	}
	futimens(fd, times);
	close(fd);
}

/* One entry that is no extension header. */
static void apply(const char *header, char *path, const char *target, size_t size)
{
	mode_t mode = (mode_t)strtol(header + 100, NULL, 8) & 0777;
	time_t when = strtol(header + 136, NULL, 8);
	const struct timespec times[2] = {{when, 0}, {when, 0}};
	const char *name;

	for (size_t end = strlen(path); end && path[end - 1] == '/';)
		path[--end] = '\0';
	name = enter(path);
	if (!*name || !strcmp(name, "."))
		return;
	if (!strncmp(name, ".wh.", 4)) {
		if (unlinkat(parent_fd, name + 4, 0) && errno == EISDIR)
			unlinkat(parent_fd, name + 4, AT_REMOVEDIR);
	} else if (header[156] == '5') {
		mkdirat(parent_fd, name, mode | 0700);
	} else if (header[156] == '2') {
		if (symlinkat(target, parent_fd, name) && errno == EEXIST && !unlinkat(parent_fd, name, 0))
			symlinkat(target, parent_fd, name);
		utimensat(parent_fd, name, times, AT_SYMLINK_NOFOLLOW);
	} else if (header[156] == '1') {
		linkat(AT_FDCWD, target, parent_fd, name, 0);
	} else if (header[156] == '0' || !header[156]) {
		write_file(name, mode, header + BLOCK, size, times);
	}
}

static void extract(const char *tar, size_t length)
{
	char long_path[LONGEST] = "", long_target[LONGEST] = "";

	for (size_t at = 0; at + BLOCK <= length && tar[at];) {
		const char *header = tar + at;
		size_t size = (size_t)strtoll(header + 124, NULL, 8);
		char path[LONGEST], target[LONGEST];

		at += BLOCK + (size + BLOCK - 1) / BLOCK * BLOCK;
		if (header[156] == 'x') {
			take_pax(header + BLOCK, size, "path", long_path);
			take_pax(header + BLOCK, size, "linkpath", long_target);
			continue;
		}
		if (header[156] == 'L' || header[156] == 'K') {
			snprintf(header[156] == 'L' ? long_path : long_target, LONGEST, "%.*s", (int)size, header + BLOCK);
			continue;
		}
		if (*long_path)
			strcpy(path, long_path);
		else if (header[345] && !memcmp(header + 257, "ustar", 6))
			snprintf(path, sizeof path, "%.155s/%.100s", header + 345, header);
		else
			snprintf(path, sizeof path, "%.100s", header);
		if (*long_target)
			strcpy(target, long_target);
		else
			snprintf(target, sizeof target, "%.100s", header + 157);
		apply(header, path + strspn(path, "/"), target, size);
		*long_path = *long_target = '\0';
	}
}

int main(int argc, char **argv)
{
	double wall = 0, busy = 0;
	struct timespec from, to;

	umask(0);
	if (argc < 3 || mkdir(argv[1], 0755) || chdir(argv[1]))
		die("make", argc < 3 ? "DIR" : argv[1]);
	for (int i = 2; i < argc; i++) {
		int fd = open(argv[i], O_RDONLY | O_CLOEXEC);
		struct stat status;
		char *tar;
		double before;

		if (fd < 0 || fstat(fd, &status))
			die("open", argv[i]);
		tar = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
		if (tar == MAP_FAILED)
			die("map", argv[i]);
		before = cpu();
		clock_gettime(CLOCK_MONOTONIC, &from);
		extract(tar, (size_t)status.st_size);
		clock_gettime(CLOCK_MONOTONIC, &to);
		busy += cpu() - before;
		wall += seconds(from, to);
		munmap(tar, (size_t)status.st_size);
	}
	clock_gettime(CLOCK_MONOTONIC, &from);
	syncfs(open(".", O_RDONLY | O_CLOEXEC));
	clock_gettime(CLOCK_MONOTONIC, &to);
	printf("%.6f %.6f %.6f\n", busy, wall, seconds(from, to));
	return 0;
}
