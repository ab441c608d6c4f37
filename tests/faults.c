/* Lets the n-th change of the file system below a folder fail, and all after it: preloaded. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[4096];
static long count, fail_at; /* 0: never */
static int error;

void faults_arm(const char *folder, long at, int number) {
    strncpy(root, folder, sizeof root - 1);
    count = 0;
    fail_at = at;
    error = number;
}
long faults_count(void) { return count; }

static int fails(const char *path) {
    char whole[4096];
    if (!root[0] || !path) return 0;
    if (path[0] != '/') {
        if (!getcwd(whole, sizeof whole)) return 0;
        path = strncat(strncat(whole, "/", 2), path, sizeof whole - strlen(whole) - 1);
    }
    if (strncmp(path, root, strlen(root))) return 0;
    count = __sync_add_and_fetch(&count, 1);
    if (!fail_at || count < fail_at) return 0;
    errno = error;
    return 1;
}
static int fails_fd(int fd) {
    char link[64], path[4096];
    if (!root[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return fails(path);
}
#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define WRITES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)

#define OPEN(name) \
int name(const char *path, int flags, ...) { \
    REAL(name); mode_t mode = 0; \
    if (flags & O_CREAT) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); } \
    if ((flags & WRITES) && fails(path)) return -1; \
    return real(path, flags, mode); }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
int name(int at, const char *path, int flags, ...) { \
    REAL(name); mode_t mode = 0; \
    if (flags & O_CREAT) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); } \
    if ((flags & WRITES) && fails(path)) return -1; \
    return real(at, path, flags, mode); }
OPENAT(openat)
OPENAT(openat64)
FILE *fopen64(const char *p, const char *m) { REAL(fopen64); return m[0] != 'r' && fails(p) ? NULL : real(p, m); }
FILE *fopen(const char *p, const char *m) { REAL(fopen); return m[0] != 'r' && fails(p) ? NULL : real(p, m); }
ssize_t write(int fd, const void *b, size_t n) { REAL(write); return fails_fd(fd) ? -1 : real(fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { REAL(pwrite); return fails_fd(fd) ? -1 : real(fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { REAL(pwrite64); return fails_fd(fd) ? -1 : real(fd, b, n, o); }
ssize_t writev(int fd, const struct iovec *v, int n) { REAL(writev); return fails_fd(fd) ? -1 : real(fd, v, n); }
ssize_t copy_file_range(int a, off64_t *x, int b, off64_t *y, size_t n, unsigned f) { REAL(copy_file_range); return fails_fd(b) ? -1 : real(a, x, b, y, n, f); }
ssize_t sendfile64(int out, int in, off64_t *o, size_t n) { ssize_t (*real)(int, int, off64_t *, size_t) = dlsym(RTLD_NEXT, "sendfile64"); return fails_fd(out) ? -1 : real(out, in, o, n); }
int ftruncate(int fd, off_t n) { REAL(ftruncate); return fails_fd(fd) ? -1 : real(fd, n); }
int ftruncate64(int fd, off64_t n) { REAL(ftruncate64); return fails_fd(fd) ? -1 : real(fd, n); }
int fallocate64(int fd, int m, off64_t o, off64_t n) { REAL(fallocate64); return fails_fd(fd) ? -1 : real(fd, m, o, n); }
int posix_fallocate64(int fd, off64_t o, off64_t n) { REAL(posix_fallocate64); return fails_fd(fd) ? errno : real(fd, o, n); }
int fsync(int fd) { REAL(fsync); return fails_fd(fd) ? -1 : real(fd); }
int mkdir(const char *p, mode_t m) { REAL(mkdir); return fails(p) ? -1 : real(p, m); }
int rename(const char *a, const char *b) { REAL(rename); return fails(b) ? -1 : real(a, b); }
int renameat(int x, const char *a, int y, const char *b) { REAL(renameat); return fails(b) ? -1 : real(x, a, y, b); }
int link(const char *a, const char *b) { REAL(link); return fails(b) ? -1 : real(a, b); }
int symlink(const char *a, const char *b) { REAL(symlink); return fails(b) ? -1 : real(a, b); }
/* A read-only disk also refuses to delete; a full one does not. */
int unlink(const char *p) { REAL(unlink); return error == EROFS && fails(p) ? -1 : real(p); }
int rmdir(const char *p) { REAL(rmdir); return error == EROFS && fails(p) ? -1 : real(p); }
