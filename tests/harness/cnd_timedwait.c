/* `cnd_timedwait` by libfaketime's clock, which that library leaves out, and by which librdkafka waits.
 *
 * As in the kernel a wait ends when the clock shows its time, also where the clock was set meanwhile: that is looked at every
 * 50 ms, after which a caller may find itself woken for nothing, as C allows. Preloaded before libfaketime, whose
 * CLOCK_MONOTONIC must be the system's.
 */
#include <errno.h>
#include <pthread.h>
#include <threads.h>
#include <time.h>

#define SECOND_NS 1000000000LL
#define SLICE_NS (SECOND_NS / 20)

static long long left_ns(const struct timespec *until) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    long long seconds = until->tv_sec - now.tv_sec;
    if (seconds > 1)
        return SECOND_NS;
    if (seconds < -1)
        return -SECOND_NS;
    return seconds * SECOND_NS + until->tv_nsec - now.tv_nsec;
}

int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *until) {
    long long wait_ns = left_ns(until);
    if (wait_ns > SLICE_NS)
        wait_ns = SLICE_NS;
    if (wait_ns < 0)
        wait_ns = 0;
    struct timespec wake;
    clock_gettime(CLOCK_MONOTONIC, &wake);
    wait_ns += wake.tv_nsec;
    wake.tv_sec += wait_ns / SECOND_NS;
    wake.tv_nsec = wait_ns % SECOND_NS;
    /* glibc's own conditions are these. */
    int error = pthread_cond_clockwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, CLOCK_MONOTONIC, &wake);
    if (error == ETIMEDOUT)
        return left_ns(until) > 0 ? thrd_success : thrd_timedout;
    return error == 0 ? thrd_success : thrd_error;
}
