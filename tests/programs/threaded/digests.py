# As `openssl speed -multi`, with results in place of speeds: threads, then processes, that have libcrypto
# compute digests and keys at the same time.
import hashlib
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

ALGORITHMS = ["md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b"]


def digest(job):
    name, number = job
    state = hashlib.new(name)
    for block in range(40):
        # More than 2047 bytes: the interpreter's lock is released meanwhile.
        state.update(bytes([number, block]) * 4096)
    return name, number, state.hexdigest()[:16]


def key(number):
    return hashlib.pbkdf2_hmac("sha256", b"secret", bytes([number]) * 16, 400).hex()[:16]


if __name__ == "__main__":
    jobs = [(name, number) for name in ALGORITHMS for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        threads = list(pool.map(digest, jobs))
        keys = list(pool.map(key, range(8)))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        processes = pool.map(digest, jobs)
    for line in threads:
        print(*line)
    print(*keys)
    print("alike", threads == processes)
