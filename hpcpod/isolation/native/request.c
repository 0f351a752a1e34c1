/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "options.h"
#include "version.h"

enum { GROUPS_MAX = 65536 }; /* the kernel's NGROUPS_MAX; musl's is 32 */

#define OPTION_COUNT (sizeof run_options / sizeof run_options[0])

/*
 * What a plan depends on beside the command line.  launcher/request.py has the same names: a test compares
 * them.  What changes from step to step (PMIX_SERVER_TMPDIR, TMPDIR) is not here: the record names those
 * variables, and the rank's own values are used.
 */
static const char *const request_variables[] = {
	"HOME", "USER", "XDG_CONFIG_HOME", "HPCPOD_CONFIG", "HPCPOD_STORE", "HPCPOD_RUNTIME", "HPCPOD_BIND", "HPCPOD_MPI", "PMIX_SECURITY_MODE",
};

/* FNV-1a of 128 bits: a name for a directory of the user's own, where nobody else can plant a collision. */
__extension__ typedef unsigned __int128 hash_t;

#define HASH_START (((hash_t)0x6c62272e07bb0142 << 64) + 0x62b821756295c58d)

static hash_t hash_word(hash_t hash, const char *word)
{
	const hash_t prime = ((hash_t)1 << 88) + 0x13b;

	do
		hash = (hash ^ (unsigned char)*word) * prime;
	while (*word++); /* the final NUL too: it keeps the words apart */
	return hash;
}

static hash_t hash_number(hash_t hash, unsigned long number)
{
	char text[24];

	snprintf(text, sizeof text, "%lu", number);
	return hash_word(hash, text);
}

static hash_t hash_identity(hash_t hash)
{
	static gid_t groups[GROUPS_MAX];
	int count = getgroups(GROUPS_MAX, groups);

	hash = hash_number(hash_number(hash, getuid()), getgid());
	for (int i = 0; i < count; i++)
		hash = hash_number(hash, groups[i]);
	return hash_word(hash, "");
}

static void hash_text(hash_t hash, char *out)
{
	snprintf(out, HASH_SIZE, "%016lx%016lx", (unsigned long)(hash >> 64), (unsigned long)hash);
}

void hash_words(const char *const *words, char *out)
{
	hash_t hash = HASH_START;

	while (*words)
		hash = hash_word(hash, *words++);
	hash_text(hash, out);
}

/* Which installation this is: a plan can name its files. */
static hash_t hash_front(hash_t hash)
{
	char path[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);

	path[length > 0 ? length : 0] = '\0';
	return hash_word(hash_word(hash, HPCPOD_VERSION), path);
}

static void request_hash(struct request *request)
{
	hash_t hash = hash_identity(hash_front(HASH_START));
	char cwd[PATH_MAX];

	hash = hash_word(hash, getcwd(cwd, sizeof cwd) ? cwd : "");
	for (size_t i = 0; i < sizeof request_variables / sizeof request_variables[0]; i++) {
		const char *value = getenv(request_variables[i]);

		hash = hash_word(hash, value ? value : "\1");
	}
	for (int i = 0; i < request->option_count; i++)
		hash = hash_word(hash, request->options[i]);
	hash = hash_word(hash, request->reference);
	hash_text(hash, request->hash);
}

/* How many words this option takes (1 or 2), or 0 when it is not in the table. */
static int option_words(const char *word)
{
	const char *equals = strchr(word, '=');

	if (word[1] != '-') {
		for (size_t i = 0; i < OPTION_COUNT; i++)
			if (run_options[i].shortname == word[1] && word[1])
				return run_options[i].takes_value && !word[2] ? 2 : 1;
		return 0;
	}
	for (size_t i = 0; i < OPTION_COUNT; i++) {
		size_t length = equals ? (size_t)(equals - word - 2) : strlen(word + 2);

		if (strlen(run_options[i].name) == length && !memcmp(run_options[i].name, word + 2, length))
			return run_options[i].takes_value && !equals ? 2 : 1;
	}
	return 0;
}

/*
 * Split the words after `run` into options, reference and program.  Whatever is not plainly right goes to
 * Python, which knows how to say what is wrong.
 */
enum request_kind request_parse(char *const *words, struct request *request)
{
	int i = 0;

	while (words[i] && words[i][0] == '-') {
		int step = option_words(words[i]);

		if (step == 0 || (step == 2 && !words[i + 1]))
			return REQUEST_FOR_PYTHON;
		i += step;
	}
	if (!words[i] || !words[i][0])
		return REQUEST_FOR_PYTHON;
	request->options = words;
	request->option_count = i;
	request->reference = words[i++];
	if (words[i] && !strcmp(words[i], "--"))
		i++;
	else if (words[i] && words[i][0] == '-')
		return REQUEST_FOR_PYTHON;
	request->program = words + i;
	request_hash(request);
	return REQUEST_READY;
}
