# A repository: commits, branches, a merge, packing, a clone, a bisection.
set -e
export GIT_AUTHOR_DATE='1700000000 +0000' GIT_COMMITTER_DATE='1700000000 +0000' GIT_CONFIG_GLOBAL=/dev/null
work=$(mktemp -d); cd "$work"
git init -q -b main repository; cd repository
git config user.email test@example.org; git config user.name Test
for i in 1 2 3 4 5 6; do echo "line $i" >> file; git add file; git commit -qm "Commit $i"; done
git log --format='%h %s'
git checkout -q -b topic HEAD~2; echo topic > other; git add other; git commit -qm Topic
git checkout -q main; git merge -q --no-edit topic; git log --oneline --graph | head -n 8
echo changed >> file; git diff --stat; git stash -q; git status --short; git stash pop -q; git checkout -q file
git gc -q; git fsck; git rev-parse HEAD
git clone -q . ../clone; git -C ../clone log -1 --format=%H; cat ../clone/file
git bisect start -q HEAD HEAD~6 >/dev/null; git bisect run sh -c '! grep -q "line 4" file' | grep 'first bad'; git bisect reset -q
git archive HEAD | tar t; git grep -n 'line 3'; git blame -s file | head -n 2
cd /; rm -rf "$work"
