/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Remove NAME, or with PREFIX* every name that begins so. */
static void unset(const char *pattern)
{
	size_t length = strlen(pattern), keep = 0;

	if (!length || pattern[length - 1] != '*') {
		unsetenv(pattern);
		return;
	}
	for (char **entry = environ; entry && *entry; entry++)
		if (strncmp(*entry, pattern, length - 1) != 0)
			environ[keep++] = *entry;
	if (environ)
		environ[keep] = NULL;
}

/* The rank's environment: what it inherits, changed by the record's operations in their order. */
int environment_apply(const struct record *record, struct fault *f)
{
	for (size_t i = 0; i < record->count; i++) {
		const struct op *op = &record->ops[i];

		if (op->kind == OP_ENV_UNSET)
			unset(op->word[0]);
		else if (op->kind != OP_ENV_SET && op->kind != OP_ENV_DEFAULT)
			continue;
		else if (setenv(op->word[0], op->word[1], op->kind == OP_ENV_SET) < 0)
			return fail_errno(f, "environment", "environment variable %s", op->word[0]);
	}
	return 0;
}
