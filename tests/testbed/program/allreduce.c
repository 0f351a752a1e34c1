// SPDX-License-Identifier: Apache-2.0
// The cluster tests' MPI program for images without Python: one JSON object per rank, and a checked sum.
// allreduce N: exit status 0 only if the world has N ranks and the sum is right.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void read_link(const char *path, char *text, size_t size) {
    const ssize_t length = readlink(path, text, size - 1);
    text[length < 0 ? 0 : length] = '\0';
}

static void read_cpus(char *text, size_t size) {
    char line[256];
    FILE *status = fopen("/proc/self/status", "re");
    text[0] = '\0';
    while (status && fgets(line, sizeof line, status)) {
        if (strncmp(line, "Cpus_allowed_list:\t", 19) == 0) {
            snprintf(text, size, "%s", line + 19);
            text[strcspn(text, "\n")] = '\0';
        }
    }
    if (status)
        fclose(status);
}

int main(int argc, char **argv) {
    int rank, size, sum = 0, length;
    char library[MPI_MAX_LIBRARY_VERSION_STRING], node[256], name_space[64], cpus[64];

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    const int mine = rank + 1;
    MPI_Allreduce(&mine, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Get_library_version(library, &length);
    library[strcspn(library, "\n")] = '\0';
    for (char *tab = library; (tab = strchr(tab, '\t')) != NULL;)
        *tab = ' ';
    gethostname(node, sizeof node);
    read_link("/proc/self/ns/mnt", name_space, sizeof name_space);
    read_cpus(cpus, sizeof cpus);
    printf("{\"rank\": %d, \"size\": %d, \"node\": \"%s\", \"cpus\": \"%s\", \"mnt_ns\": \"%s\", "
           "\"library\": \"%s\"}\n", rank, size, node, cpus, name_space, library);
    fflush(stdout);
    MPI_Finalize();
    const int expected = argc > 1 ? atoi(argv[1]) : size;
    return size == expected && sum == size * (size + 1) / 2 ? 0 : 1;
}
