/* Commit, lock store, crash, restore and fail-over between two writers of one audit database.
 *
 * A commit is an id, made once: its number, and which database it was first appended to. The database is the sequence of commits that it holds; equal chain values are equal ids,
 * since an id is only ever appended to one history. A restored backup, and a standby that lost commits, are prefixes of
 * what there was. Labels are the failpoints of the code, with underscores for dots: a test compares them.
 *
 *   no fork          no two acknowledged commits have one number
 *   nothing is lost  a database that lacks an acknowledged commit is recognised: it does not hold the lock store's
 *                    commit either, so that every further commit is refused
 *   no false alarm   (-DNO_RESTORE) crashes alone never make a writer refuse
 *
 * The suite checks crashes and restores apart (-DCRASHES=0), `make test-long` both together.
 *
 * Broken variants that the checker must catch: -DACK_EARLY acknowledges before the lock store moves, -DNO_LOCK_CHECK
 * commits without asking the lock store, -DNO_RECHECK takes another writer's move of the lock store for its own.
 */
#define MAX 3  /* two commits */
#ifndef CRASHES
#define CRASHES 1
#endif
#define HOLDS(s, i) ((s) == 0 || ((s) <= size && db[s] == (i)))
#define KEPT(s) (acked[s] == 0 || HOLDS(s, acked[s]))

byte db[MAX];              /* db[n]: id of commit n; 0 is not used */
byte size;                 /* last commit of the database */
byte row;                  /* whose transaction holds audit_writer */
byte server = 1;           /* which database answers: a restore or fail-over makes another of it */
byte lock_seq, lock_id;    /* the lock store */
byte acked[MAX];           /* acknowledged commits */
byte crashes = CRASHES;
byte restores = 1;

#define SAFE ((KEPT(1) && KEPT(2)) || !HOLDS(lock_seq, lock_id))
#define STEP if :: crashes > 0 -> crashes--; goto crashed :: skip fi

proctype Writer(byte me) {
  byte seen_seq, seen_id;  /* the lock store as this writer saw it */
  byte on, new_seq, new_id;

start:
  atomic { seen_seq = lock_seq; seen_id = lock_id };
  atomic {
#ifndef NO_LOCK_CHECK
    if :: !HOLDS(seen_seq, seen_id) -> goto refused :: else fi;
#endif
    new_seq = size; new_id = (size == 0 -> 0 : db[size])
  };
  if :: new_seq > seen_seq -> goto lock_moving :: else fi;      /* what a crash left: the lock store follows */

batch_taken:
  atomic { new_seq = 0; new_id = 0; seen_seq = 0; seen_id = 0; on = 0 };
  STEP;
  if :: size >= MAX - 1 -> goto done :: else fi;
  atomic { seen_seq = lock_seq; seen_id = lock_id };
  atomic {
    row == 0 -> row = me; on = server;
#ifndef NO_LOCK_CHECK
    if :: !HOLDS(seen_seq, seen_id) -> row = 0; goto refused :: else fi
#endif
  };
  atomic {                    /* a crash at each; what goes on beside them meets the lock of the row, or ends it */
    skip;
commit_begun:
    STEP;
commit_leaves:
    STEP;
commit_tiles:
    STEP;
commit_heads:
    STEP
  };
commit_chained:
  STEP;
  atomic {
    if
    :: on != server || row != me -> goto start                   /* the server went away: nothing was committed */
    :: size >= MAX - 1 -> row = 0; goto done
    :: else -> size++; new_seq = size; new_id = (server - 1) * MAX + size; db[size] = new_id; row = 0
    fi
  };
commit_done:
  atomic { on = 0; STEP };
#ifdef ACK_EARLY
  goto acknowledge;
#endif
lock_moving:
  atomic {
    STEP;
    if
    :: lock_seq == seen_seq && lock_id == seen_id -> lock_seq = new_seq; lock_id = new_id
    :: else -> seen_seq = lock_seq; seen_id = lock_id; goto other
    fi
  };
lock_written:  /* a crash of the host before the disk has it is one before the write: nobody who read it lives on */
  atomic { seen_seq = 0; seen_id = 0; STEP };
lock_synced:
  STEP;
lock_moved:
  STEP;
  goto acknowledge;

other:                                                           /* another writer moved the lock store */
  atomic {
    if :: !HOLDS(seen_seq, seen_id) -> goto refused :: else fi;
    if :: seen_seq < new_seq -> goto lock_moving :: else fi
  };
#ifndef NO_RECHECK
  atomic { if :: !HOLDS(new_seq, new_id) -> goto refused :: else fi };
#endif

acknowledge:
  atomic {
    if
    :: new_seq == 0
    :: else -> assert(acked[new_seq] == 0 || acked[new_seq] == new_id); acked[new_seq] = new_id
    fi
  };
batch_acknowledged:
  STEP;
  goto batch_taken;

crashed:
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
       size = to
     }
  :: break
  od
#endif
}

init { atomic { run Writer(1); run Writer(2); run Restore(); run Watch() } }
