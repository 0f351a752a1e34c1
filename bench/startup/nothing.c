// SPDX-License-Identifier: Apache-2.0
/* The smallest payload: a static program that ends at once. */
int main(void)
{
	return 0;
}
