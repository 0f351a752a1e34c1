// SPDX-License-Identifier: Apache-2.0
// What the injector's two files share: the system calls that it knows, and the rules.
#ifndef INJECTOR_H
#define INJECTOR_H

enum {
    CHANGES = 1,      // changes what is on a file system, or makes it last
    IF_CREATES = 2,   // ... only with flags that make or cut a file; where they are depends on the call
    IF_FILE = 4,      // ... or is counted only where its descriptor, the first argument, is a regular file
    OPENS = 8,        // makes a descriptor
    LOOKS = 16,       // finds a file by name, or asks about it
    READS = 32,       // takes bytes out of a regular file
    ALL = 1 << 14,
};

struct call {
    short number;
    short kinds;
    short path;       // which argument is a path that the call is about; -1 for none
    const char *name;
};

enum { N_CALLS = 99, MAX_RULES = 8 };

extern const struct call CALLS[N_CALLS];

enum action { COUNT, KILL, KILL_AFTER, KILL_ONE, HOLD, HALF, FAIL };

struct rule {
    int kinds;        // one of the kinds, or ALL; 0: only the named ones
    unsigned char named[N_CALLS];
    long at;          // 0: each
    enum action action;
    int error;        // of FAIL
    long count;
    char fired[128];  // the last call that it acted on
};

extern struct rule rules[MAX_RULES];
extern int n_rules;

/* Takes one more rule; 0, or -1 for one that is not understood. */
int injector_rule(const char *text);

/* The call of this number, or NULL. */
const struct call *find_call(long number);

/* Whether a rule asks about a call, as far as its number tells.  call: NULL for one that is not known. */
int may_match(const struct rule *rule, const struct call *call);

#endif
