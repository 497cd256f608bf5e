/* Commit, lock store, crash, restore and fail-over between writers of one audit database.
 *
 * A commit is an id, made once: its number, and which database it was first appended to. The database is the sequence of
 * commits that it holds; equal chain values are equal ids, since an id is only ever appended to one history. A restored
 * backup, and a standby that lost commits, are prefixes of what there was. Labels are the failpoints of the code, with
 * underscores for dots: a test compares them.
 *
 *   no fork          no two acknowledged commits have one number
 *   nothing is lost  a database that lacks an acknowledged commit is recognised: it does not hold the lock store's
 *                    commit either, so that every further commit is refused
 *   no false alarm   (-DNO_RESTORE) crashes alone never make a writer refuse
 *
 * Bounds: -DWRITERS, -DCOMMITS (numbers that a commit may have), -DCRASHES (of a writer, or an answer that is lost),
 * -DRESTORES (or fail-overs).
 *
 * Steps that only the writer itself sees are done at once with the step before or after them, which leaves out nothing
 * that another could have seen. A jump from one atomic sequence into another goes on atomically, so that every label
 * that is jumped to from within one begins with a `skip` outside. STEP and LOST stand within atomic sequences only: else
 * two writers could both pass the guard on the last crash, and the count would wrap.
 *
 * Broken variants that the checker must catch: -DACK_EARLY acknowledges before the lock store moves, -DNO_LOCK_CHECK
 * commits without asking the lock store, -DNO_RECHECK takes another writer's move of the lock store for its own,
 * -DNO_COMPARE moves the lock store whatever it holds, -DNUMBER_ONLY compares commits by number without their chain.
 */
#ifndef WRITERS
#define WRITERS 2
#endif
#ifndef COMMITS
#define COMMITS 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef RESTORES
#define RESTORES 1
#endif
#define MAX (COMMITS + 1)
#define AT(s, i) ((s) == 0 || ((s) <= size && db[s] == (i)))
#ifdef NUMBER_ONLY
#define HOLDS(s, i) ((s) <= size)
#else
#define HOLDS(s, i) AT(s, i)
#endif
#define KEPT(s) ((s) > COMMITS || acked[s] == 0 || AT(s, acked[s]))

byte db[MAX];              /* db[n]: id of commit n; 0 is not used */
byte size;                 /* last commit of the database */
byte row;                  /* whose transaction holds audit_writer */
byte server = 1;           /* which database answers: a restore or fail-over makes another of it */
byte lock_seq, lock_id;    /* the lock store */
byte acked[MAX];           /* acknowledged commits */
byte crashes = CRASHES;
byte restores = RESTORES;

#define SAFE ((KEPT(1) && KEPT(2) && KEPT(3) && KEPT(4)) || !HOLDS(lock_seq, lock_id))
#define STEP if :: crashes > 0 -> crashes--; goto crashed :: skip fi
#define LOST if :: crashes > 0 -> crashes--; goto batch_taken :: skip fi   /* the writer lives on and does not know */

proctype Writer(byte me) {
  byte seen_seq, seen_id;  /* the lock store as this writer saw it */
  byte on, new_seq, new_id;

start:
  skip;
  atomic { new_seq = size; new_id = (size == 0 -> 0 : db[size]) };
  atomic { seen_seq = lock_seq; seen_id = lock_id };
  atomic {
#ifndef NO_LOCK_CHECK
    if :: !HOLDS(seen_seq, seen_id) -> goto refused :: else fi;
#endif
    if :: new_seq > seen_seq -> goto lock_moving :: else fi      /* what a crash left: the lock store follows */
  };

batch_taken:
  skip;
  atomic {
    on = 0; new_seq = 0; new_id = 0; seen_seq = 0; seen_id = 0;
    STEP;
    if :: size >= COMMITS -> goto done :: else fi;
    seen_seq = lock_seq; seen_id = lock_id
  };
  atomic {
    row == 0 -> row = me; on = server;
#ifndef NO_LOCK_CHECK
    if :: !HOLDS(seen_seq, seen_id) -> row = 0; on = 0; goto refused :: else fi;
#endif
commit_begun:
    STEP;
commit_leaves:
    STEP;
commit_tiles:
    STEP;
commit_heads:
    STEP;
commit_chained:
    STEP
  };
  atomic {
    if
    :: on != server || row != me -> goto batch_taken             /* the server went away: nothing was committed */
    :: size >= COMMITS -> row = 0; goto batch_taken
    :: else -> size++; new_seq = size; new_id = (server - 1) * MAX + size; db[size] = new_id; row = 0; on = 0
    fi;
    LOST;
commit_done:
    STEP
  };
#ifdef ACK_EARLY
  goto acknowledge;
#endif
lock_moving:
  skip;
  atomic {
    STEP;
    if
#ifdef NO_COMPARE
    :: lock_seq = new_seq; lock_id = new_id
#else
    :: lock_seq == seen_seq && lock_id == seen_id -> lock_seq = new_seq; lock_id = new_id
    :: lock_seq == new_seq && lock_id == new_id                  /* another writer moved it to where it should go */
    :: else -> seen_seq = lock_seq; seen_id = lock_id; goto other
#endif
    fi;
    LOST;
lock_written:  /* a crash of the host before the disk has it is one before the write: nobody who read it lives on */
    STEP;
lock_synced:
    STEP;
lock_moved:
    STEP;
    seen_seq = 0; seen_id = 0
  };
  goto acknowledge;

other:                                                           /* another writer moved the lock store elsewhere */
  skip;
  atomic { if :: !HOLDS(seen_seq, seen_id) -> goto refused :: else fi };
  atomic {
#ifndef NO_RECHECK
    if :: !HOLDS(new_seq, new_id) -> goto refused :: else fi;
#endif
    if :: seen_seq < new_seq -> goto lock_moving :: else -> seen_seq = 0; seen_id = 0 fi
  };

acknowledge:
  skip;
  atomic {
    if
    :: new_seq == 0
    :: else -> assert(acked[new_seq] == 0 || acked[new_seq] == new_id); acked[new_seq] = new_id
    fi;
batch_acknowledged:
    STEP
  };
  goto batch_taken;

crashed:
  skip;
  atomic {
    if :: row == me -> row = 0 :: else fi;
    seen_seq = 0; seen_id = 0; on = 0; new_seq = 0; new_id = 0
  };
  goto start;

refused:
#ifdef NO_RESTORE
  assert(false);
#endif
done:
  skip
}

proctype Watch() {
  atomic { !SAFE -> assert(SAFE) }
}

proctype Restore() {                                             /* any prefix: a backup, or an asynchronous standby */
  byte to;
#ifndef NO_RESTORE
  do
  :: restores > 0 && size > 0 ->
     atomic {
       restores--; server++; row = 0; to = 0;
       do :: to < size - 1 -> to++ :: break od;
       size = to; to = 0
     }
  :: break
  od
#endif
}

init {
  atomic {
    run Writer(1); run Writer(2);
#if WRITERS == 3
    run Writer(3);
#endif
    run Restore(); run Watch()
  }
}
