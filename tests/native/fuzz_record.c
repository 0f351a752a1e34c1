/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer: no bytes whatever make the reader of sealed records leave them. */
#include "hpcpod.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct record record;
	struct fault fault = {0};
	char *copy = malloc(size ? size : 1);

	if (!copy)
		return 0;
	memcpy(copy, data, size);
	if (record_parse(copy, size, &record, &fault) == 0) {
		record_is_current(&record, 0);
		record_free(&record);
	}
	return 0;
}
