/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hpcpod, the command on PATH.  `run` is carried out here when the plan or the pod is there already; every other
 * word, and every command line that is not plainly right, is Python's.
 */
#define _GNU_SOURCE
#include "hpcpod.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

static int run(char *const *words, struct fault *f)
{
	struct launch launch = {.stamps.start = clock_realtime_ns()};
	char cwd[PATH_MAX] = "";
	struct fault ignored;
	int events;

	if (request_parse(words + 2, &launch.request) == REQUEST_FOR_PYTHON)
		return python_exec(words + 1, f);
	if (!getcwd(cwd, sizeof cwd))
		cwd[0] = '\0'; /* deleted or unreachable: the plan's other directories will do */
	launch.runtime = step_recognise(&launch.step, f) < 0 ? -1 : runtime_open(f);
	if (launch.runtime < 0)
		return -1;
	/* A node that is full records nothing, but starts its ranks. */
	events = events_open(launch.runtime, &launch.step, &ignored);
	if (pod_enter(&launch, f) < 0)
		return -1;
	return rank_execute(&launch, cwd, events, f);
}

/*
 * A closed standard descriptor would be taken by the first file opened here, and the program would write its
 * output into that.
 */
static int open_missing_stdio(struct fault *f)
{
	struct pollfd standard[] = {{.fd = 0}, {.fd = 1}, {.fd = 2}};

	if (poll(standard, 3, 0) < 0)
		return fail_errno(f, "installation", "standard input and output");
	for (int i = 0; i < 3; i++)
		if ((standard[i].revents & POLLNVAL) && open("/dev/null", O_RDWR) < 0)
			return fail_errno(f, "installation", "/dev/null");
	return 0;
}

/* `--debug` is an option of hpcpod's and of its `run`: before the word it means what it means behind it. */
static void move_debug(char **words)
{
	int i = 1;

	while (words[i] && !strcmp(words[i], "--debug"))
		i++;
	if (i > 1 && words[i] && !strcmp(words[i], "run")) {
		char *run = words[i];

		words[i] = words[1];
		words[1] = run;
	}
}

int main(int argc, char **argv)
{
	struct fault fault = {0};

	if (argc < 1 || open_missing_stdio(&fault) < 0)
		return EXIT_HPCPOD;
	if (argc > 1)
		move_debug(argv);
	if (argc > 1 && !strcmp(argv[1], "run"))
		run(argv, &fault);
	else if (argc > 1 && !strcmp(argv[1], "--rank"))
		rank_stub(argv + 2, &fault);
	else
		python_exec(argv + 1, &fault);
	if (fault.text[0])
		fault_print(&fault);
	return fault.code ? fault.code : EXIT_HPCPOD;
}
