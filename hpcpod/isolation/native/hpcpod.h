/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The native part of hpcpod: find or make a pod from a sealed record, enter it, execute the program.
 *
 * Nothing here decides what a pod looks like: that is in the record, which Python wrote (launcher/record.py).
 * Functions return 0, or -1 with the reason in a struct fault; only main.c prints and exits.
 */
#ifndef HPCPOD_H
#define HPCPOD_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { EXIT_HPCPOD = 125, EXIT_CANNOT_EXECUTE = 126, EXIT_NOT_FOUND = 127 };

/* ---- fault.c: what went wrong, for people and for scripts */

struct fault {
	int code;        /* exit status */
	char slug[32];   /* stable name, as in hpcpod/errors.py */
	char text[1024]; /* what, where, got and expected */
	char hint[512];  /* what to do, or empty */
};

int fail(struct fault *f, int code, const char *slug, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
int fail_errno(struct fault *f, const char *slug, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void fault_hint(struct fault *f, const char *format, ...) __attribute__((format(printf, 2, 3)));
void fault_print(const struct fault *f);

/* Slug where a signal ended the process that prepared, or the one that was to hold the pod. */
#define SLUG_KILLED "killed"

/* ---- syscalls.c: one wrapper for each call that libc does not have */

int sys_openat2(int dir, const char *path, uint64_t flags, uint64_t resolve);
int sys_open_in_root(int root, const char *path);
int sys_open_tree(int dir, const char *path, unsigned flags);
int sys_move_mount(int from, int to);
int sys_mount_setattr(int fd, bool recursive, uint64_t set);
int sys_fsopen(const char *type);
int sys_fsconfig(int fs, unsigned command, const char *key, const char *value);
int sys_fsmount(int fs, uint64_t attributes);
int sys_pidfd_open(pid_t pid);
int sys_close_range(unsigned first, unsigned last);
int sys_pivot_root_here(void);
int64_t clock_realtime_ns(void);

/* ---- request.c: the command line of `run`, and the names under which its plan and pod are kept */

struct request {
	char *const *options; /* words between `run` and the reference */
	int option_count;
	const char *reference;
	char *const *program; /* NULL-terminated; empty when the image's own command is wanted */
	char hash[33];        /* of all that a plan depends on */
};

enum { HASH_SIZE = 33 };

void hash_words(const char *const *words, char *out); /* NULL-terminated; HASH_SIZE bytes of text */

enum request_kind { REQUEST_READY, REQUEST_FOR_PYTHON };

enum request_kind request_parse(char *const *words, struct request *request);

/* ---- step.c: this process's place in a parallel job */

enum { PMI_1 = 1, PMI_2 = 2, PMI_X = 4 };

struct step {
	const char *launcher; /* "slurm" or "local" */
	char scope[96];       /* names this start: slurm-JOB.STEP, or local-SECONDS-PID */
	bool shared;          /* other ranks of this node join the same pod */
	char job[24], id[24];
	char node[HOST_NAME_MAX + 1];
	long rank, local_rank, ntasks, local_ntasks; /* local_ntasks 0: not known */
	unsigned served;      /* PMI_1 | … that the process manager offers */
	bool size_disagrees;  /* PMI serves a world of another size than the step's */
};

int step_recognise(struct step *step, struct fault *f);
long first_count_for_node(const char *counts, long node);

/* ---- paths.c: the run-time directory */

int runtime_open(struct fault *f); /* O_PATH descriptor of it; see hpcpod/config.py for the rule */
const char *runtime_path(void);    /* after runtime_open */

/* ---- record.c: the sealed record */

enum op_kind {
	OP_GUARD, OP_ROOTFS, OP_FUSE, OP_WRITABLE, OP_BIND, OP_BIND_ENV, OP_TMPFS, OP_FILE, OP_ENV_SET, OP_ENV_DEFAULT,
	OP_ENV_UNSET, OP_ENV_KEEP, OP_WORKDIR, OP_COMMAND, OP_LAUNCH, OP_SECCOMP, OP_PMI_CHECK, OP_PMI_ACCEPT, OP_REFERENCE,
	OP_DIGEST, OP_SHIELD, OP_UNTIL, OP_FRESH, OP_KEEP_FDS, OP_END,
};

struct op {
	enum op_kind kind;
	const char *word[6];
};

struct record {
	char *bytes; /* owned */
	size_t size;
	struct op *ops; /* owned */
	size_t count;
};

int record_parse(char *bytes, size_t size, struct record *record, struct fault *f);
int record_read(int dir, const char *name, struct record *record, struct fault *f);
bool record_is_current(const struct record *record, int64_t start);
const char *record_word(const struct record *record, enum op_kind kind);
const struct op *record_op(const struct record *record, enum op_kind kind);
void record_free(struct record *record);

/* ---- root.c, mounts.c and pod.c: make a pod around this process */

struct mount {
	const struct op *op;
	const char *target;
	const char *source; /* of a bind */
	bool directory;
	int tree;    /* a copy of source where it was taken already; else -1 */
	char *named; /* owned: target, where a variable names it; else NULL */
};

struct assembly {
	struct mount *mounts; /* owned */
	size_t count;
	int tree;    /* the image's tree, O_PATH */
	int root;    /* the new root, O_PATH, once it is mounted */
	dev_t root_device;
	ino_t root_inode;
	int scratch; /* memory file system for mount points, generated files and the writable layer */
	unsigned files;
};

bool path_is_below(const char *path, const char *directory);
int list_mounts(const struct record *record, struct assembly *a, struct fault *f);
int make_root(const struct record *record, struct assembly *a, struct fault *f);
int apply_mount(struct assembly *a, struct mount *mount, struct fault *f);
int open_mount_place(void);
void mark_used(const char *path);
int namespaces_make(int kinds, uid_t uid, gid_t gid, struct fault *f);
int root_enter(int root, struct fault *f);
int pod_make(const struct record *record, int tree, struct fault *f); /* tree: from fuse_take */

/* ---- fuse.c: the one mount of a packed image that a user's pods share; server.c: the process that serves it */

int fuse_take(int runtime, const struct record *record, int *tree, struct fault *f);
int server_start(const struct op *fuse, int image, int connection, int *said, struct fault *f);

/* ---- hold.c: a process that keeps what it made until its last member is gone */

struct kept {
	const char *room, *name;     /* RUNTIME/room/name is how others find it */
	const char *process;         /* the holder's name for ps(1) */
	const struct record *record; /* what it is made from */
	bool recorded;               /* whether the record is to lie there too */
	long expected;               /* members that come in all; 0: not known */
	int linger_ms;               /* how long it stays while nobody is there and more may come */
	int (*make)(int runtime, const struct record *record, int *vital, struct fault *f);
};

int hold(int runtime, int lock, const struct kept *kept, struct fault *f);
void descriptors_keep(int a, int b, int c);
int pod_hold(int runtime, int lock, const char *name, const struct record *record, const struct step *step,
             struct fault *f);

/* ---- join.c */

struct pod {
	int directory, holder; /* RUNTIME/pods/NAME, and a pidfd of the holder; -1 when there is none */
	pid_t pid;             /* the holder's, if it lives */
	struct record record;
};

bool holder_find(int runtime, const char *room, const char *name, struct pod *pod); /* no record is read */
bool holder_tell(const struct pod *pod);

bool pod_find(int runtime, const char *name, struct pod *pod);
bool pod_is_held(const struct pod *pod);
bool pod_join(const struct pod *pod);
void pod_forget(struct pod *pod);

/* ---- lock.c */

enum turn { MY_TURN, WAITED, LOCK_FAILED };

int lock_open(int runtime, const char *name, struct fault *f);
int lock_patiently(int fd, int operation);
enum turn lock_take_turn(int fd, bool again, struct fault *f);
void lock_note_failure(int fd, int code);
int lock_noted_failure(int fd, int64_t since);
int lock_end_like_winner(int code, struct fault *f);

/* ---- prepare.c: the ranks of a node agree on who makes the plan and the pod */

struct stamps {
	int64_t start, found, entered, create_start, create_end;
	const char *how; /* prepared, created, waited, found */
};

struct launch {
	struct request request;
	struct step step;
	struct stamps stamps;
	struct record record; /* of the pod that was entered */
	int runtime;
};

int pod_enter(struct launch *launch, struct fault *f);

/* ---- mpi.c */

int mpi_check(const struct record *record, const char *tree, const struct launch *launch, struct fault *f);

/* ---- rank.c: from a process in the pod to the user's program */

int rank_execute(const struct launch *launch, const char *caller_cwd, int events, struct fault *f);

/* ---- privileges.c */

int privileges_drop(const struct record *record, struct fault *f);
int descriptor_of_pmi(void);
void descriptors_close(const struct record *record, int pmi);

/* ---- environment.c, diagnose.c, events.c, python.c, stub.c */

int environment_apply(const struct record *record, struct fault *f);
int explain_exec(const char *program, int error, struct fault *f);
int events_open(int directory, const struct step *step, struct fault *f);
void events_write(int events, const struct launch *launch);
int python_run(const char *const *words, struct fault *f);
int python_exec(char *const *argv, struct fault *f);
int rank_stub(char *const *argv, struct fault *f);

/* Where the pod of a local launch finds this program and the events, for rank_stub. */
#define STUB_EVENTS "/run/hpcpod/events"

#endif
