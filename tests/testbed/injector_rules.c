// SPDX-License-Identifier: Apache-2.0
// The injector's table of system calls, and how its rules are read.
#define _GNU_SOURCE
#include "injector.h"

#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

struct rule rules[MAX_RULES];
int n_rules;

#define CALL(name, kinds, path) {SYS_##name, kinds, path, #name}

const struct call CALLS[N_CALLS] = {
    CALL(open, OPENS | LOOKS | CHANGES | IF_CREATES, 0),
    CALL(creat, OPENS | CHANGES, 0),
    CALL(openat, OPENS | LOOKS | CHANGES | IF_CREATES, 1),
    CALL(openat2, OPENS | LOOKS | CHANGES | IF_CREATES, 1),
    CALL(dup, OPENS, -1), CALL(dup2, OPENS, -1), CALL(dup3, OPENS, -1),
    CALL(pipe, OPENS, -1), CALL(pipe2, OPENS, -1),
    CALL(socket, OPENS, -1), CALL(socketpair, OPENS, -1),
    CALL(memfd_create, OPENS, -1), CALL(eventfd2, OPENS, -1), CALL(epoll_create1, OPENS, -1),
    CALL(stat, LOOKS, 0), CALL(lstat, LOOKS, 0), CALL(newfstatat, LOOKS, 1), CALL(statx, LOOKS, 1),
    CALL(fstat, LOOKS, -1), CALL(access, LOOKS, 0), CALL(faccessat, LOOKS, 1), CALL(faccessat2, LOOKS, 1),
    CALL(readlink, LOOKS, 0), CALL(readlinkat, LOOKS, 1), CALL(getdents64, LOOKS, -1),
    CALL(statfs, LOOKS, 0), CALL(fstatfs, LOOKS, -1),
    CALL(read, READS | IF_FILE, -1), CALL(pread64, READS | IF_FILE, -1), CALL(readv, READS | IF_FILE, -1),
    CALL(preadv, READS | IF_FILE, -1), CALL(mmap, 0, -1),
    CALL(mkdir, CHANGES, 0), CALL(mkdirat, CHANGES, 1), CALL(mknod, CHANGES, 0), CALL(mknodat, CHANGES, 1),
    CALL(rename, CHANGES, 1), CALL(renameat, CHANGES, 3), CALL(renameat2, CHANGES, 3),
    CALL(link, CHANGES, 1), CALL(linkat, CHANGES, 3), CALL(symlink, CHANGES, 1), CALL(symlinkat, CHANGES, 2),
    CALL(unlink, CHANGES, 0), CALL(unlinkat, CHANGES, 1), CALL(rmdir, CHANGES, 0),
    CALL(write, CHANGES | IF_FILE, -1), CALL(pwrite64, CHANGES | IF_FILE, -1),
    CALL(writev, CHANGES | IF_FILE, -1), CALL(pwritev, CHANGES | IF_FILE, -1),
    CALL(pwritev2, CHANGES | IF_FILE, -1), CALL(sendfile, CHANGES | IF_FILE, -1),
    CALL(copy_file_range, CHANGES, -1), CALL(splice, 0, -1),
    CALL(truncate, CHANGES, 0), CALL(ftruncate, CHANGES | IF_FILE, -1), CALL(fallocate, CHANGES | IF_FILE, -1),
    CALL(fsync, CHANGES, -1), CALL(fdatasync, CHANGES, -1), CALL(syncfs, CHANGES, -1), CALL(sync, CHANGES, -1),
    CALL(sync_file_range, CHANGES, -1),
    CALL(utime, CHANGES, 0), CALL(utimes, CHANGES, 0), CALL(futimesat, CHANGES, 1), CALL(utimensat, CHANGES, 1),
    CALL(chmod, CHANGES, 0), CALL(fchmod, CHANGES, -1), CALL(fchmodat, CHANGES, 1),
    CALL(chown, CHANGES, 0), CALL(fchown, CHANGES, -1), CALL(lchown, CHANGES, 0), CALL(fchownat, CHANGES, 1),
    CALL(setxattr, CHANGES, 0), CALL(lsetxattr, CHANGES, 0), CALL(fsetxattr, CHANGES, -1),
    CALL(removexattr, CHANGES, 0), CALL(lremovexattr, CHANGES, 0), CALL(fremovexattr, CHANGES, -1),
    CALL(mount, CHANGES, 1), CALL(umount2, CHANGES, 0), CALL(move_mount, CHANGES, 3),
    CALL(open_tree, CHANGES, 1), CALL(fsopen, CHANGES, -1), CALL(fsmount, CHANGES, -1),
    CALL(mount_setattr, CHANGES, 1), CALL(pivot_root, CHANGES, 0),
    CALL(flock, CHANGES, -1), CALL(fcntl, 0, -1), CALL(close, 0, -1), CALL(close_range, 0, -1),
    CALL(clone, 0, -1), CALL(clone3, 0, -1), CALL(fork, 0, -1), CALL(vfork, 0, -1), CALL(execve, 0, 0),
    CALL(kill, 0, -1), CALL(wait4, 0, -1), CALL(exit_group, 0, -1),
};

const struct call *find_call(long number)
{
    for (int i = 0; i < N_CALLS; i++)
        if (CALLS[i].number == number)
            return &CALLS[i];
    return NULL;
}

static int parse_calls(struct rule *rule, char *text)
{
    static const struct { const char *name; int kinds; } sets[] = {
        {"all", ALL}, {"changes", CHANGES}, {"opens", OPENS}, {"looks", LOOKS}, {"reads", READS},
    };
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++)
        if (strcmp(text, sets[i].name) == 0) {
            rule->kinds = sets[i].kinds;
            return 0;
        }
    char *rest = NULL;
    for (char *name = strtok_r(text, "+", &rest); name; name = strtok_r(NULL, "+", &rest)) {
        int i = 0;
        while (i < N_CALLS && strcmp(CALLS[i].name, name) != 0)
            i++;
        if (i == N_CALLS)
            return -1;
        rule->named[i] = 1;
    }
    return 0;
}

static int parse_action(struct rule *rule, const char *text)
{
    static const char *const names[] = {"count", "kill", "kill-after", "kill-one", "hold", "half"};
    for (int i = COUNT; i < FAIL; i++)
        if (strcmp(text, names[i]) == 0) {
            rule->action = (enum action)i;
            return 0;
        }
    rule->action = FAIL;
    for (rule->error = 1; rule->error < 134; rule->error++) {
        const char *name = strerrorname_np(rule->error);
        if (name && strcmp(name, text) == 0)
            return 0;
    }
    return -1;
}

int injector_rule(const char *text)
{
    char copy[512];
    if (n_rules == MAX_RULES || strlen(text) >= sizeof copy)
        return -1;
    strcpy(copy, text);
    char *when = strchr(copy, ':');
    char *action = when ? strchr(when + 1, ':') : NULL;
    if (!action)
        return -1;
    *when++ = *action++ = '\0';
    struct rule *rule = &rules[n_rules];
    memset(rule, 0, sizeof *rule);
    char *end = when;
    rule->at = strcmp(when, "*") == 0 ? 0 : strtol(when, &end, 10);
    if (parse_calls(rule, copy) || parse_action(rule, action) || (rule->at == 0) != (*when == '*'))
        return -1;
    n_rules++;
    return 0;
}

int may_match(const struct rule *rule, const struct call *call)
{
    if (rule->kinds & ALL)
        return 1;
    return call && ((call->kinds & rule->kinds) || rule->named[call - CALLS]);
}
