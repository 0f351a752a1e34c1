// SPDX-License-Identifier: Apache-2.0
/* Runs a command and counts its system calls, over all its threads and children; at the N-th of a kind it
 * kills the command, holds it, or makes the call fail.
 *
 *     injector [-r RULE]... [-t SECONDS] [-o FILE] -- COMMAND...      FILE: of the report, else standard error
 *
 * RULE is CALLS:WHEN:ACTION.
 *   CALLS   all, changes, opens, looks, reads (injector.h), or names of system calls joined by +
 *   WHEN    a number, counted from 1 by this rule; or * for each
 *   ACTION  count; kill (all processes of the command, before the call); kill-after (when the call is done);
 *           kill-one (only the process that calls); hold (write a line on the control descriptor and wait
 *           for a byte from it; k kills); half (a write or read of half the bytes); or the name of an errno
 *
 * How: a seccomp filter stops the calls that a rule names (SECCOMP_RET_TRACE), ptrace(2) does the rest; all
 * other calls run at full speed.  Built as a program, and as a library for a process that forks commands
 * (forkserver.py): the child calls injector_submit(), its parent injector_trace().
 */
#define _GNU_SOURCE
#include "injector.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef __x86_64__
#error "written for x86-64: how a system call is skipped differs between architectures"
#endif

enum { MAX_TRACED = 4096, GRACE_SECONDS = 5, TICK_MICROSECONDS = 50000 };

static pid_t traced[MAX_TRACED];
static int n_traced;
static int killing;               // everything that still comes up is killed
static int control;               // where "held" is written, and the byte to go on read

/* ---------------------------------------------------------------- looking into the command */

static int peek(pid_t pid, unsigned long address, void *buffer, size_t size)
{
    struct iovec here = {buffer, size}, there = {(void *)address, size};
    return process_vm_readv(pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -1;
}

static int creates(pid_t pid, long number, const uint64_t *args)
{
    unsigned long flags = number == SYS_open ? args[1] : args[2];
    uint64_t how = 0;
    if (number == SYS_openat2)
        flags = peek(pid, args[2], &how, sizeof how) == 0 ? how : 0;
    return (flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE;
}

static int is_file(pid_t pid, int fd)
{
    char path[64];
    struct stat status;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
    return stat(path, &status) == 0 && S_ISREG(status.st_mode);
}

static int matches(const struct rule *rule, const struct call *call, pid_t pid, const uint64_t *args)
{
    if (!may_match(rule, call))
        return 0;
    if ((rule->kinds & ALL) || rule->named[call - CALLS])
        return 1;
    if ((rule->kinds & CHANGES) && (call->kinds & IF_CREATES))
        return creates(pid, call->number, args);
    return !(call->kinds & IF_FILE) || is_file(pid, (int)args[0]);
}

/* Name and path of a call, fit to stand in JSON. */
static void describe(char *out, size_t size, const struct call *call, long number, pid_t pid, const uint64_t *args)
{
    int used = call ? snprintf(out, size, "%s", call->name) : snprintf(out, size, "call %ld", number);
    if (!call || call->path < 0)
        return;
    out[used++] = ' ';
    unsigned long address = args[call->path];
    while ((size_t)used < size - 1 && peek(pid, address++, out + used, 1) == 0 && out[used]) {
        if (!isprint((unsigned char)out[used]) || strchr("\"\\", out[used]))
            out[used] = '?';
        used++;
    }
    out[used] = '\0';
}

/* ---------------------------------------------------------------- acting */

static void add(pid_t pid)
{
    for (int i = 0; i < n_traced; i++)
        if (traced[i] == pid)
            return;
    if (n_traced < MAX_TRACED)
        traced[n_traced++] = pid;
}

static void forget(pid_t pid)
{
    for (int i = 0; i < n_traced; i++)
        if (traced[i] == pid)
            traced[i] = traced[--n_traced];
}

static void kill_all(void)
{
    killing = 1;
    for (int i = 0; i < n_traced; i++)
        kill(traced[i], SIGKILL);
}

static void hold(const char *what)
{
    char byte;
    dprintf(control, "{\"held\": \"%s\"}\n", what);
    ssize_t got;
    while ((got = read(control, &byte, 1)) < 0 && errno == EINTR)
        ;
    if (got <= 0 || byte == 'k')
        kill_all();
}

/* Changes the call that a stopped thread is about to make: error > 0 skips it, 0 halves its length. */
static void bend(pid_t pid, int error)
{
    struct user_regs_struct registers;
    if (ptrace(PTRACE_GETREGS, pid, NULL, &registers) != 0)
        return;
    if (error) {
        registers.orig_rax = (unsigned long)-1;
        registers.rax = (unsigned long)-error;
    } else {
        registers.rdx = registers.rdx > 1 ? registers.rdx / 2 : registers.rdx;
    }
    ptrace(PTRACE_SETREGS, pid, NULL, &registers);
}

/* Counts the call that a thread is about to make; returns how the thread is to go on. */
static enum __ptrace_request at_call(pid_t pid)
{
    struct __ptrace_syscall_info info;
    if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info) <= 0 || info.op != PTRACE_SYSCALL_INFO_SECCOMP)
        return PTRACE_CONT;
    const struct call *call = find_call((long)info.seccomp.nr);
    enum __ptrace_request next = PTRACE_CONT;
    for (struct rule *rule = rules; rule < rules + n_rules; rule++) {
        if (!matches(rule, call, pid, info.seccomp.args))
            continue;
        rule->count++;
        if (rule->action == COUNT || (rule->at != 0 && rule->count != rule->at))
            continue;
        describe(rule->fired, sizeof rule->fired, call, (long)info.seccomp.nr, pid, info.seccomp.args);
        if (rule->action == KILL)
            kill_all();
        else if (rule->action == KILL_ONE)
            kill(pid, SIGKILL);
        else if (rule->action == KILL_AFTER)
            next = PTRACE_SYSCALL;
        else if (rule->action == HOLD)
            hold(rule->fired);
        else
            bend(pid, rule->action == FAIL ? rule->error : 0);
    }
    return next;
}

/* Deals with one stop of one thread. */
static void at_stop(pid_t pid, int status)
{
    int signal = WSTOPSIG(status), event = status >> 16;
    enum __ptrace_request next = PTRACE_CONT;
    unsigned long child = 0;
    add(pid);
    if (killing) {
        kill(pid, SIGKILL);
        return;
    }
    if (event == PTRACE_EVENT_SECCOMP) {
        next = at_call(pid);
        signal = 0;
    } else if (signal == (SIGTRAP | 0x80)) { // the call of kill-after has been made
        kill_all();
        return;
    } else if (event) {
        if (event != PTRACE_EVENT_STOP && event != PTRACE_EVENT_EXEC &&
            ptrace(PTRACE_GETEVENTMSG, pid, NULL, &child) == 0)
            add((pid_t)child);
        signal = 0;
    }
    ptrace(next, pid, NULL, (void *)(long)signal);
}

/* ---------------------------------------------------------------- the two ends */

static void tick(int signal)
{
    (void)signal;
}

/* In the command's process: wait until the parent traces it, then have the calls of all rules stopped.
 * gate: a pipe's end, closed by the parent when it is ready.  0, or -1 with errno. */
int injector_submit(int gate)
{
    struct sock_filter filter[N_CALLS * 2 + 8];
    unsigned short n = 0;
    char byte;
    while (read(gate, &byte, 1) < 0 && errno == EINTR)
        ;
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (struct rule *rule = rules; rule < rules + n_rules; rule++)
        if (rule->kinds & ALL)
            filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    for (int i = 0; i < N_CALLS; i++) {
        int wanted = 0;
        for (struct rule *rule = rules; rule < rules + n_rules; rule++)
            wanted |= may_match(rule, &CALLS[i]);
        if (!wanted || n >= N_CALLS * 2 + 4)
            continue;
        filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)CALLS[i].number, 0, 1);
        filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    }
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {n, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void report(int fd, int status, int late, int left)
{
    char text[MAX_RULES * 256 + 256];
    int used = snprintf(text, sizeof text, "{\"status\": %d, \"signal\": %d, \"late\": %s, \"left\": %d, \"rules\": [",
                        WIFEXITED(status) ? WEXITSTATUS(status) : -1, WIFSIGNALED(status) ? WTERMSIG(status) : 0,
                        late ? "true" : "false", left);
    for (int i = 0; i < n_rules; i++)
        used += snprintf(text + used, sizeof text - (size_t)used, "%s{\"count\": %ld, \"fired\": \"%s\"}",
                         i ? ", " : "", rules[i].count, rules[i].fired);
    dprintf(fd, "%s]}\n", text);
}

/* In the parent: trace the child until it and all that it started have ended, then write the report.
 * control_fd: for "held", and for the report.  seconds: after them everything is killed.  0, or -1. */
int injector_trace(pid_t pid, int gate, int control_fd, double seconds)
{
    long options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                   PTRACE_O_TRACEEXEC | PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL;
    struct sigaction action = {.sa_handler = tick};
    struct itimerval timer = {{0, TICK_MICROSECONDS}, {0, TICK_MICROSECONDS}};
    double deadline = now() + seconds;
    int status, end = 0, late = 0, left = 0, ended = 0;
    control = control_fd;
    add(pid);
    if (ptrace(PTRACE_SEIZE, pid, NULL, (void *)options) != 0)
        return -1;
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    close(gate);
    for (;;) {
        pid_t stopped = waitpid(-1, &status, __WALL);
        if (stopped < 0 && errno != EINTR)
            break;
        if (stopped < 0) {
            if (killing || now() < deadline)
                continue;
            *(ended ? &left : &late) = ended ? n_traced : 1;
            kill_all();
        } else if (WIFSTOPPED(status)) {
            at_stop(stopped, status);
        } else {
            forget(stopped);
            if (stopped == pid) {
                end = status;
                ended = 1;
                deadline = now() + GRACE_SECONDS; // for what it started and did not wait for
            }
        }
    }
    report(control_fd, end, late, left);
    return 0;
}

#ifdef PROGRAM
static int usage(const char *what)
{
    fprintf(stderr, "injector: %s: not understood\nusage: injector [-r RULE]... [-t SECONDS] [-o FILE] -- COMMAND...\n", what);
    return 2;
}

int main(int argc, char **argv)
{
    double seconds = 600;
    int option, gate[2], out = 2;
    while ((option = getopt(argc, argv, "+r:t:o:")) != -1) {
        if (option == 't')
            seconds = atof(optarg);
        else if (option == 'o')
            out = open(optarg, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        else if (option != 'r' || injector_rule(optarg) != 0)
            return usage(option == 'r' ? optarg : "option");
    }
    if (optind == argc || pipe2(gate, O_CLOEXEC) != 0)
        return usage("no command");
    pid_t pid = fork();
    if (pid == 0) {
        close(gate[1]);
        if (injector_submit(gate[0]) == 0)
            execvp(argv[optind], argv + optind);
        fprintf(stderr, "injector: %s: %s\n", argv[optind], strerror(errno));
        _exit(127);
    }
    close(gate[0]);
    return pid < 0 ? 2 : -injector_trace(pid, gate[1], out, seconds);
}
#endif
