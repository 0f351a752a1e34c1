/* SPDX-License-Identifier: Apache-2.0 */
/* execve(2) says ENOENT for a missing program, a missing interpreter and a missing loader alike: find out which. */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined __x86_64__
static const unsigned own_machine = EM_X86_64;
#elif defined __aarch64__
static const unsigned own_machine = EM_AARCH64;
#else
static const unsigned own_machine = EM_NONE;
#endif

/* The file that execvp(3) would have taken; false when there is none on the PATH. */
static bool find_program(const char *program, char *out, size_t size)
{
	const char *path = getenv("PATH");
	struct stat s;

	if (!*program)
		return false;
	if (strchr(program, '/')) {
		snprintf(out, size, "%s", program);
		return stat(out, &s) == 0;
	}
	while (path && *path) {
		const char *colon = strchrnul(path, ':');

		snprintf(out, size, "%.*s/%s", (int)(colon - path), path, program);
		if (stat(out, &s) == 0)
			return true;
		path = *colon ? colon + 1 : colon;
	}
	return false;
}

static int explain_script(const char *file, const char *line, struct fault *f)
{
	char interpreter[128];

	if (sscanf(line, "#! %127s", interpreter) != 1 && sscanf(line, "#!%127s", interpreter) != 1)
		interpreter[0] = '\0';
	fail(f, EXIT_CANNOT_EXECUTE, "exec", "%s: its interpreter %s is not in the image", file, interpreter);
	if (line[strcspn(line, "\r\n")] == '\r')
		fault_hint(f, "the first line ends with a carriage return: convert the file's line ends");
	return -1;
}

static int explain_elf(const char *file, const Elf64_Ehdr *header, int fd, struct fault *f)
{
	char loader[256];
	Elf64_Phdr segment;

	if (own_machine != EM_NONE && header->e_machine != own_machine)
		return fail(f, EXIT_CANNOT_EXECUTE, "exec", "%s: built for another architecture (ELF machine %u, this node has %u)",
		            file, header->e_machine, own_machine);
	for (unsigned i = 0; i < header->e_phnum && header->e_ident[EI_CLASS] == ELFCLASS64; i++) {
		off_t at = (off_t)(header->e_phoff + i * sizeof segment);
		ssize_t got;

		if (pread(fd, &segment, sizeof segment, at) != sizeof segment)
			break;
		if (segment.p_type != PT_INTERP)
			continue;
		got = pread(fd, loader, sizeof loader - 1, (off_t)segment.p_offset);
		loader[got > 0 ? got : 0] = '\0';
		if (access(loader, F_OK) < 0)
			return fail(f, EXIT_CANNOT_EXECUTE, "exec", "%s: its loader %s is not in the image", file, loader);
	}
	return fail(f, EXIT_CANNOT_EXECUTE, "exec", "%s: not executable on this node", file);
}

int explain_exec(const char *program, int error, struct fault *f)
{
	char file[PATH_MAX];
	union {
		Elf64_Ehdr elf;
		char text[256];
	} head = {.text = ""};
	struct stat s;
	int fd;

	if (error == ENOTCONN || error == ECONNABORTED) {
		fail(f, EXIT_CANNOT_EXECUTE, "exec", "%s: the image can no longer be read (ENOTCONN)", program);
		fault_hint(f, "the process that serves the image to this pod was killed; the next pod gets another");
		return -1;
	}
	if (!find_program(program, file, sizeof file)) {
		fail(f, EXIT_NOT_FOUND, "not-found", "%s: no such program in the image", program);
		if (!strchr(program, '/'))
			fault_hint(f, "it was looked for along PATH=%.400s", getenv("PATH") ? getenv("PATH") : "");
		return -1;
	}
	fd = open(file, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd >= 0 && fstat(fd, &s) == 0 && S_ISREG(s.st_mode) && (error == ENOENT || error == ENOEXEC)) {
		if (pread(fd, head.text, sizeof head.text - 1, 0) > 2 && !memcmp(head.text, "#!", 2))
			return explain_script(file, head.text, f);
		if (!memcmp(head.elf.e_ident, ELFMAG, SELFMAG))
			return explain_elf(file, &head.elf, fd, f);
	}
	fail(f, EXIT_CANNOT_EXECUTE, "exec", "%s: %s", file, strerror(error));
	if (error == ENOEXEC)
		fault_hint(f, "a script needs a first line such as #!/bin/sh");
	return -1;
}
