/* SPDX-License-Identifier: Apache-2.0 */
#include "hpcpod.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int fail(struct fault *f, int code, const char *slug, const char *format, ...)
{
	va_list arguments;

	f->code = code;
	f->hint[0] = '\0';
	snprintf(f->slug, sizeof f->slug, "%s", slug);
	va_start(arguments, format);
	vsnprintf(f->text, sizeof f->text, format, arguments);
	va_end(arguments);
	return -1;
}

int fail_errno(struct fault *f, const char *slug, const char *format, ...)
{
	int error = errno;
	va_list arguments;
	size_t used;

	fail(f, EXIT_HPCPOD, slug, "%s", "");
	va_start(arguments, format);
	vsnprintf(f->text, sizeof f->text, format, arguments);
	va_end(arguments);
	used = strlen(f->text);
	snprintf(f->text + used, sizeof f->text - used, ": %s", strerror(error));
	errno = error;
	return -1;
}

void fault_hint(struct fault *f, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(f->hint, sizeof f->hint, format, arguments);
	va_end(arguments);
}

/* Control characters come from file names and image references: shown, they could drive a terminal. */
static void copy_printable(char *to, size_t size, const char *from)
{
	size_t n = 0;

	for (; *from && n + 5 < size; from++) {
		unsigned char c = (unsigned char)*from;

		if (c >= 0x20 && c != 0x7f)
			to[n++] = (char)c;
		else
			n += (size_t)snprintf(to + n, size - n, "\\x%02x", c);
	}
	to[n] = '\0';
}

/* One write, so that the messages of many ranks do not mix. */
void fault_print(const struct fault *f)
{
	char text[2048], hint[1024], line[4096];
	int length;

	copy_printable(text, sizeof text, f->text);
	copy_printable(hint, sizeof hint, f->hint);
	length = snprintf(line, sizeof line, "hpcpod: %s [%s]\n%s%s%s", text, f->slug, *hint ? "hint: " : "", hint,
	                  *hint ? "\n" : "");
	if (write(STDERR_FILENO, line, (size_t)length) < 0)
		return; /* nobody is listening; the exit status still tells */
}
