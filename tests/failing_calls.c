/* LD_PRELOAD: the n-th system call that creates, writes, renames or removes a file below a folder fails with a chosen error. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long fail_at, failure, calls;
static char failed[PATH_MAX + 32];

void begin_failing(const char *below, long number, long error) {
    strncpy(folder, below, sizeof folder - 1);
    fail_at = number, failure = error, calls = 0, failed[0] = 0;
}

long calls_so_far(void) { return calls; }
const char *failed_call(void) { return failed; }

static int fails(const char *name, const char *path) {
    if (!folder[0] || !path) return 0;
    char whole[PATH_MAX];
    if (path[0] != '/') {
        char here[PATH_MAX];
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(whole, sizeof whole, "%.2000s/%.2000s", here, path);
        path = whole;
    }
    if (strncmp(path, folder, strlen(folder))) return 0;
    calls++;
    if (!fail_at) fprintf(stdout, "CALL %s %s\n", name, path), fflush(stdout);
    if (calls != fail_at) return 0;
    snprintf(failed, sizeof failed, "%s %.4000s", name, path);
    errno = (int)failure;
    return 1;
}

static int fails_at(const char *name, int descriptor) {
    int before = errno;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = folder[0] ? readlink(link, path, sizeof path - 1) : -1;
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(name, path);
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* Newer versions of filelock probe a folder by a file without a name, whose failure is harmless. */
static int creates(int flags) { return (flags & O_ACCMODE) != O_RDONLY && (flags & O_TMPFILE) != O_TMPFILE; }

#define OPEN(NAME)                                                                   \
    int NAME(const char *path, int flags, ...) {                                     \
        va_list rest; va_start(rest, flags);                                         \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;    \
        va_end(rest);                                                                \
        REAL(NAME);                                                                  \
        return creates(flags) && fails("open", path) ? -1 : real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(NAME)                                                                            \
    int NAME(int at, const char *path, int flags, ...) {                                        \
        va_list rest; va_start(rest, flags);                                                    \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;               \
        va_end(rest);                                                                           \
        REAL(NAME);                                                                             \
        return creates(flags) && fails("open", path) ? -1 : real(at, path, flags, mode);        \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t count) { REAL(write); return fails_at("write", fd) ? -1 : real(fd, data, count); }
ssize_t writev(int fd, const struct iovec *data, int count) { REAL(writev); return fails_at("write", fd) ? -1 : real(fd, data, count); }
ssize_t pwrite64(int fd, const void *data, size_t count, off_t at) { REAL(pwrite64); return fails_at("write", fd) ? -1 : real(fd, data, count, at); }
int fsync(int fd) { REAL(fsync); return fails_at("fsync", fd) ? -1 : real(fd); }
int ftruncate64(int fd, off_t length) { REAL(ftruncate64); return fails_at("ftruncate", fd) ? -1 : real(fd, length); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); return fails("mkdir", path) ? -1 : real(path, mode); }
int rename(const char *from, const char *to) { REAL(rename); return fails("rename", to) ? -1 : real(from, to); }
int unlink(const char *path) { REAL(unlink); return fails("unlink", path) ? -1 : real(path); }
