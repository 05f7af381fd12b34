/* Preloaded into a process, makes its calls on files fail, stall, end half done, or kill it.
 *
 * FILE_FAULTS_ROOT     the folder whose files are concerned
 * FILE_FAULTS_CONTROL  a file of `struct control`, mapped, so that a test can change it while the process runs
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NOTHING, KILL, FAIL, SHORTEN, STALL };

struct control {
    int side;      /* 1: calls that change files; 2: reads */
    int action;
    int skipped;   /* number of calls that are spared first */
    int affected;  /* number of calls after them that the action applies to; -1: all */
    int error;     /* of FAIL */
    int millis;    /* of STALL */
    int num_calls; /* calls seen, since the test set it to 0 */
};

static struct control *control;
static char root[PATH_MAX];

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("FILE_FAULTS_CONTROL"), *folder = getenv("FILE_FAULTS_ROOT");
    if (!path || !folder || !realpath(folder, root)) return;
    int (*open_file)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    int file = open_file(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    void *memory = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory != MAP_FAILED) control = memory;
}

static int is_inside(const char *path) {
    size_t length = strlen(root);
    return !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int file_is_inside(int file) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_inside(path);
}

/* Return the action that applies to this call, NOTHING for most. */
static int due(int side, int inside) {
    if (!control || control->side != side || !inside) return NOTHING;
    int number = __atomic_fetch_add(&control->num_calls, 1, __ATOMIC_SEQ_CST) - control->skipped;
    return number >= 0 && (control->affected < 0 || number < control->affected) ? control->action : NOTHING;
}

static int stop(int action) {
    if (action == KILL) kill(getpid(), SIGKILL);
    if (action == FAIL) errno = control->error;
    if (action == STALL) {
        struct timespec pause = {control->millis / 1000, control->millis % 1000 * 1000000L};
        nanosleep(&pause, NULL);
    }
    return action == FAIL;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* Calls that change files. A full disk refuses those that need space, and lets files be removed and renamed. */

static int needs_space(void) { return control && control->action == FAIL && (control->error == ENOSPC || control->error == EDQUOT); }

#define CHANGE(type, name, parameters, arguments, inside, takes_space)      \
    type name parameters {                                                  \
        REAL(name);                                                         \
        int action = due(1, inside);                                        \
        if (!(needs_space() && !(takes_space)) && stop(action)) return -1;  \
        return real arguments;                                              \
    }

CHANGE(int, fsync, (int file), (file), file_is_inside(file), 0)
CHANGE(int, fdatasync, (int file), (file), file_is_inside(file), 0)
CHANGE(int, ftruncate64, (int file, off64_t size), (file, size), file_is_inside(file), 0)
CHANGE(int, rename, (const char *from, const char *to), (from, to), is_inside(to), 0)
CHANGE(int, unlink, (const char *path), (path), is_inside(path), 0)
CHANGE(int, rmdir, (const char *path), (path), is_inside(path), 0)
CHANGE(int, mkdir, (const char *path, mode_t mode), (path, mode), is_inside(path), 1)
CHANGE(ssize_t, sendfile64, (int to, int from, off64_t *offset, size_t size), (to, from, offset, size), file_is_inside(to), 1)
CHANGE(ssize_t, copy_file_range, (int from, off64_t *in, int to, off64_t *out, size_t size, unsigned flags),
       (from, in, to, out, size, flags), file_is_inside(to), 1)

/* A write that is killed or finds the disk full has done the half of its work. */
#define WRITE(name, parameters, arguments, half)                                          \
    ssize_t name parameters {                                                             \
        REAL(name);                                                                       \
        int action = due(1, file_is_inside(file));                                        \
        int is_first = control && control->num_calls == control->skipped + 1;             \
        if (action == KILL || (action == FAIL && needs_space() && is_first && size > 1)) { \
            ssize_t count = real half;                                                    \
            if (action == FAIL) return count;                                             \
        }                                                                                 \
        return stop(action) ? -1 : real arguments;                                        \
    }

WRITE(write, (int file, const void *data, size_t size), (file, data, size), (file, data, size / 2))
WRITE(pwrite64, (int file, const void *data, size_t size, off64_t offset), (file, data, size, offset),
      (file, data, size / 2, offset))

#define OPEN(name)                                                                       \
    int name(const char *path, int flags, ...) {                                         \
        REAL(name);                                                                      \
        va_list rest;                                                                    \
        va_start(rest, flags);                                                           \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;         \
        va_end(rest);                                                                    \
        if (stop(flags & (O_CREAT | O_TRUNC) ? due(1, is_inside(path)) : NOTHING)) return -1; \
        return real(path, flags, mode);                                                  \
    }

OPEN(open)
OPEN(open64)

/* Reads. */

static ssize_t read_vector(ssize_t count, int action, const struct iovec *parts) {
    if (action != SHORTEN || count < 2) return count;
    ssize_t kept = count / 2 + 1; /* the rest of the memory holds something else, as after a short read */
    if ((size_t)count <= parts[0].iov_len) memset((char *)parts[0].iov_base + kept, 0xAA, count - kept);
    return kept;
}

#define READ(name, parameters, arguments)                                    \
    ssize_t name parameters {                                                \
        REAL(name);                                                          \
        int action = due(2, file_is_inside(file));                           \
        return stop(action) ? -1 : read_vector(real arguments, action, parts); \
    }

READ(preadv, (int file, const struct iovec *parts, int num, off_t offset), (file, parts, num, offset))
READ(preadv64, (int file, const struct iovec *parts, int num, off64_t offset), (file, parts, num, offset))
READ(preadv2, (int file, const struct iovec *parts, int num, off_t offset, int flags), (file, parts, num, offset, flags))
READ(preadv64v2, (int file, const struct iovec *parts, int num, off64_t offset, int flags), (file, parts, num, offset, flags))
