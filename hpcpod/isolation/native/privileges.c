/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * The bounding set masks what execve(2) may give: to uid 0, and from files.  no_new_privs and SECBIT_NOROOT leave
 * nothing of either, so this is a second bolt, for uid 0 alone: 42 calls are a tenth of what a rank's entry costs.
 */
static int empty_bounding_set(struct fault *f)
{
	if (getuid() != 0)
		return 0;
	for (int capability = 0; prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0; capability++)
		;
	/* EINVAL: past the last one that this kernel knows */
	return errno == EINVAL ? 0 : fail_errno(f, "privileges", "capability bounding set");
}

/*
 * Entering a user namespace gave this process every capability in it; the program gets none, nor a way to any:
 * no_new_privs, and for uid 0 no return of them at exec (SECBIT_NOROOT).
 */
static int drop_capabilities(struct fault *f)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {{0}};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return fail_errno(f, "privileges", "no_new_privs");
	if (empty_bounding_set(f) < 0)
		return -1;
	if (prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED, 0, 0, 0) < 0)
		return fail_errno(f, "privileges", "securebits");
	if (syscall(SYS_capset, &header, none) < 0)
		return fail_errno(f, "privileges", "capset");
	return 0;
}

static int hex_digit(char c)
{
	return c <= '9' ? c - '0' : c - 'a' + 10;
}

static int load_filter(const char *hex, struct fault *f)
{
	size_t size = strlen(hex) / 2, count = size / sizeof(struct sock_filter);
	struct sock_fprog program = {.len = (unsigned short)count};
	unsigned char *bytes;
	int result;

	if (strspn(hex, "0123456789abcdef") != 2 * size || hex[2 * size] || size % sizeof(struct sock_filter) != 0 ||
	    count == 0 || count > BPF_MAXINSNS)
		return fail(f, EXIT_HPCPOD, "record", "sealed record: seccomp program of %zu bytes", size);
	bytes = malloc(size);
	if (!bytes)
		return fail_errno(f, "privileges", "seccomp");
	for (size_t i = 0; i < size; i++)
		bytes[i] = (unsigned char)(hex_digit(hex[2 * i]) * 16 + hex_digit(hex[2 * i + 1]));
	program.filter = (struct sock_filter *)(void *)bytes;
	result = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
	free(bytes);
	if (result == 0)
		return 0;
	fail_errno(f, "privileges", "seccomp filter");
	fault_hint(f, "hpcpod run --seccomp=none starts without it, where the site allows that");
	return -1;
}

/* record NULL: the holder, which runs nothing of the user's and needs no filter. */
int privileges_drop(const struct record *record, struct fault *f)
{
	const char *filter = record ? record_word(record, OP_SECCOMP) : NULL;

	if (drop_capabilities(f) < 0)
		return -1;
	return filter ? load_filter(filter, f) : 0;
}

/* The descriptor that the process manager gave this rank, by its environment, or -1. */
int descriptor_of_pmi(void)
{
	const char *text = getenv("PMI_FD");
	char *end;
	long value = text ? strtol(text, &end, 10) : -1;

	return text && *text && !*end && value > 2 && value < 1 << 20 ? (int)value : -1;
}

/*
 * Close everything but stdio, what --preserve-fds declares, and the descriptor that PMI works on, which keeps
 * its number because the rank's environment names it.
 */
void descriptors_close(const struct record *record, int pmi)
{
	const char *keep = record_word(record, OP_KEEP_FDS);
	unsigned first = 3 + (keep ? (unsigned)strtoul(keep, NULL, 10) : 0);

	if (pmi >= 0 && (unsigned)pmi >= first) {
		if ((unsigned)pmi > first)
			sys_close_range(first, (unsigned)pmi - 1);
		first = (unsigned)pmi + 1;
	}
	sys_close_range(first, ~0U);
}
