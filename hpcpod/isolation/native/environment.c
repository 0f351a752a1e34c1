/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Whether entry (NAME=VALUE) is meant by NAME, or by PREFIX*. */
static bool matches(const char *pattern, const char *entry)
{
	size_t length = strlen(pattern);

	if (length && pattern[length - 1] == '*')
		return !strncmp(entry, pattern, length - 1);
	return !strncmp(entry, pattern, length) && entry[length] == '=';
}

static bool is_kept(const struct record *record, const char *entry)
{
	for (size_t i = 0; i < record->count; i++)
		if (record->ops[i].kind == OP_ENV_KEEP && matches(record->ops[i].word[0], entry))
			return true;
	return false;
}

static void unset(const struct record *record, const char *pattern)
{
	size_t keep = 0;

	for (char **entry = environ; entry && *entry; entry++)
		if (!matches(pattern, *entry) || is_kept(record, *entry))
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
			unset(record, op->word[0]);
		else if (op->kind != OP_ENV_SET && op->kind != OP_ENV_DEFAULT)
			continue;
		else if (op->kind == OP_ENV_SET && unsetenv(op->word[0]) < 0) /* setenv changes the first of many */
			return fail_errno(f, "environment", "environment variable %s", op->word[0]);
		else if (setenv(op->word[0], op->word[1], op->kind == OP_ENV_SET) < 0)
			return fail_errno(f, "environment", "environment variable %s", op->word[0]);
	}
	return 0;
}
