/* Faults of the system for a process that preloads this library. Each is on while its file is in $FAULTS:
   clock: its text is added, in seconds, to the time of day; stuck: reads by position do not return. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const char *path_of(const char *name, char *path, size_t size) {
    const char *folder = getenv("FAULTS");
    snprintf(path, size, "%s/%s", folder ? folder : "/nonexistent", name);
    return path;
}

static long jump(void) {
    char path[512], text[32] = {0};
    int file = open(path_of("clock", path, sizeof path), O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    long seconds = read(file, text, sizeof text - 1) > 0 ? atol(text) : 0;
    close(file);
    return seconds;
}

static void wait_while_stuck(void) {
    char path[512];
    path_of("stuck", path, sizeof path);
    while (access(path, F_OK) == 0) usleep(10000);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*next)(clockid_t, struct timespec *);
    if (!next) next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int status = next(clock, now);
    if (!status && clock == CLOCK_REALTIME) now->tv_sec += jump();
    return status;
}

time_t time(time_t *target) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (target) *target = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

#define STUCK(name, parameters, arguments)                            \
    ssize_t name parameters {                                         \
        static ssize_t(*next) parameters;                             \
        if (!next) next = (ssize_t(*) parameters)dlsym(RTLD_NEXT, #name); \
        wait_while_stuck();                                           \
        return next arguments;                                        \
    }

STUCK(preadv, (int file, const struct iovec *parts, int count, off_t offset), (file, parts, count, offset))
STUCK(preadv64, (int file, const struct iovec *parts, int count, off64_t offset), (file, parts, count, offset))
STUCK(preadv2, (int file, const struct iovec *parts, int count, off_t offset, int flags),
      (file, parts, count, offset, flags))
STUCK(preadv64v2, (int file, const struct iovec *parts, int count, off64_t offset, int flags),
      (file, parts, count, offset, flags))
