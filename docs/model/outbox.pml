/*
 * Claim, publish, confirm, record: two relays, two keys, three events, and each relay fails once.
 *
 * README.md says what is modelled and how it is run. The rows are a and b, of one key and in this order, and x of the
 * other; sets of rows are bit masks. What is one statement for PostgreSQL is one atomic step here, and between any two
 * steps of a process anything may happen. Two steps are one only where nobody could tell the difference: locks are taken
 * and rows claimed at once, since a lock that is held longer only keeps others waiting; and what is published is in the
 * socket at once, since the broker reads it as late as it likes. That no pending row is hidden by the low-water mark is
 * what mark.pml shows.
 *
 * Each of these switches takes one rule away, and has to make the check fail:
 *   NO_WAVES             a key's messages are published without waiting for the confirm of the one before
 *   NO_SHARD_LOCK        rows are claimed with SKIP LOCKED alone
 *   OLD_SNAPSHOT         the claim's snapshot is older than the lock of its shard
 *   PARK_BEHIND_PENDING  a row is parked though one before it stays pending
 *   MARK_BEFORE_CONFIRM  a row is sent as soon as it is written to the socket
 *   NO_MANDATORY         what no queue took is confirmed, and counts as sent
 */

#define A            1
#define B            2
#define X            4
#define OF_KEY(key)  (key == 0 -> A + B : X)
#define FIRST(rows)  ((rows) & (~(rows) + 1))    /* the lowest of these rows, as a set */
#ifdef NO_SHARD_LOCK
#define HOLDS(key)   true
#else
#define HOLDS(key)   (shard[key] == r + 1)
#endif
#define SHOWN(rows)  ((rows) & A -> 'a' : '-'), ((rows) & B -> 'b' : '-'), ((rows) & X -> 'x' : '-')

/* The table. A row that is in none of the three sets is not committed yet. */
byte pending, parked, sent;
byte writers = 2;

/* The claiming transactions. */
byte shard[2];                 /* by key: the relay that holds the lock of its shard, counted from 1; 0 is nobody */
byte locked[2];                /* by relay: the rows that it holds FOR UPDATE */
byte relays = 2;
bool ended[2];                 /* the server has ended the relay's session, and the relay does not know it yet */

/* The broker. */
byte socket[2];                /* what each relay has published and the broker has not read */
byte late;                     /* the same, of connections that are gone: it may still come out, in any order, or never */
byte confirmed[2], refused[2], put_off[2];
byte arrived;                  /* the rows whose message is stored */
byte failures = 2;             /* how often it may yet refuse a message, or a route be closed */

/* The locks vanish with the transaction. */
inline let_go(relay_) {
    shard[0] = (shard[0] == relay_ + 1 -> 0 : shard[0]);
    shard[1] = (shard[1] == relay_ + 1 -> 0 : shard[1]);
    locked[relay_] = 0
}

/* A writer locks its key's row first, so that the transactions of a key follow one another. */
proctype writer(byte row; byte last) {
    do
    :: atomic { pending = pending | row; printf("row %c%c%c is committed\n", SHOWN(row)); row = row * 2 } ->
        if :: row > last -> writers--; break :: else fi
    od
}

inline store(rows) {
    row = FIRST(rows);
    printf("the broker stores row %c%c%c\n", SHOWN(row));
    if
    :: !(arrived & row) && row == B && !(arrived & A) ->
        printf("REORDERED: it has overtaken an earlier row of its key\n");
        assert(false)
    :: else
    fi;
    arrived = arrived | row;
    late = late & ~arrived                       /* a repeat would change nothing */
}

inline refuse(r) {
    failures--;
    row = FIRST(socket[r]); socket[r] = socket[r] & ~row;
#ifdef NO_MANDATORY
    if
    :: confirmed[r] = confirmed[r] | row; printf("the broker has no queue for row %c%c%c, and confirms it\n", SHOWN(row))
    :: refused[r] = refused[r] | row; printf("the broker nacks row %c%c%c\n", SHOWN(row))
    fi;
#else
    if
    :: refused[r] = refused[r] | row; printf("the broker nacks or returns row %c%c%c\n", SHOWN(row))
    :: put_off[r] = put_off[r] | row; late = (late | row) & ~arrived; printf("nobody answers for row %c%c%c\n", SHOWN(row))
    fi;
#endif
    row = 0
}

/* Reads a connection in its order; stores and confirms a message, or nacks it, or has no queue for it. */
proctype broker() {
    byte row;
end:
    do
    :: atomic { socket[0] -> store(socket[0]); socket[0] = socket[0] & ~row; confirmed[0] = confirmed[0] | row; row = 0 }
    :: atomic { socket[1] -> store(socket[1]); socket[1] = socket[1] & ~row; confirmed[1] = confirmed[1] | row; row = 0 }
    :: atomic { socket[0] && failures -> refuse(0) }
    :: atomic { socket[1] && failures -> refuse(1) }
    :: atomic { late & A -> store(A); row = 0 }
    :: atomic { late & B -> store(B); row = 0 }
    :: atomic { late & X -> store(X); row = 0 }
    od
}

/* Killed, or stopped and without its session: it may go on from where it was until it asks for a statement. */
inline begin_again() {
    atomic {
        ended[r] -> printf("relay %d begins again\n", r);
        ended[r] = false;
        late = (late | socket[r]) & ~arrived; socket[r] = 0; confirmed[r] = 0; refused[r] = 0; put_off[r] = 0;
        todo = 0; park = 0; through = 0; wave = 0; rows = 0; waits = 0;
        goto turn
    }
}

proctype relay(byte r) {
    byte todo, park, through, wave, rows, waits; /* rows */
    byte key;
turn:
    if
        :: begin_again()
        :: atomic { writers == 0 && (pending | parked) == 0 -> relays--; goto done }
#ifdef OLD_SNAPSHOT
        :: atomic { !ended[r] && (pending | parked) -> rows = pending; waits = parked }
        if
        :: begin_again()
        :: atomic {
            !ended[r] ->
#else
        :: atomic {
            !ended[r] && (pending | parked) ->
#endif
            /* outbox_table.TAKE_SHARDS: some of those that nobody holds. */
#ifndef NO_SHARD_LOCK
            if
            :: shard[0] == 0 -> shard[0] = r + 1
            :: shard[1] == 0 -> shard[1] = r + 1
            :: shard[0] == 0 && shard[1] == 0 -> shard[0] = r + 1; shard[1] = r + 1
            :: shard[0] && shard[1] -> rows = 0; waits = 0; goto turn
            fi;
#endif
            /* outbox_table.CLAIM and CLAIM_PARKED; the low-water mark, of which mark.pml is, hides no pending row. */
#ifdef OLD_SNAPSHOT
            rows = rows & pending;               /* FOR UPDATE looks at the row itself once more, and at nothing else */
#else
            rows = pending; waits = parked;
#endif
            rows = rows & ~locked[1 - r];
            if :: rows = FIRST(rows) :: skip fi;     /* a batch has bounds */
            do
            :: key == 2 -> break
            :: key < 2 && !HOLDS(key) -> key++
            :: key < 2 && HOLDS(key) ->
                if                               /* parked rows of the key, in their order */
                :: todo = todo | (waits & parked & OF_KEY(key) & ~locked[1 - r])
                :: todo = todo | FIRST(waits & parked & OF_KEY(key) & ~locked[1 - r])
                fi;
                if                               /* waves.py: sort_out; fresh rows wait with their key, or their route */
                :: waits & OF_KEY(key) -> park = park | (rows & OF_KEY(key))
                :: (waits & OF_KEY(key)) == 0 -> todo = todo | (rows & OF_KEY(key))
                :: (waits & OF_KEY(key)) == 0 && failures && (rows & OF_KEY(key)) ->
                    failures--; park = park | (rows & OF_KEY(key))
                :: (waits & OF_KEY(key)) == 0 && (rows & OF_KEY(key)) ->    /* its share of the claim, or its first route */
                    todo = todo | FIRST(rows & OF_KEY(key));
                    park = park | (rows & OF_KEY(key) & ~FIRST(rows & OF_KEY(key)))
                fi;
                key++
            od;
            rows = 0; waits = 0; key = 0;
            locked[r] = todo | park;
            if
            :: todo | park ->
                printf("relay %d claims the rows %c%c%c, and is to park %c%c%c\n", r, SHOWN(todo), SHOWN(park))
            :: else -> let_go(r); goto turn
            fi;
publish:
            /* forward.py: _publish, and waves.py. */
#ifdef NO_WAVES
            wave = todo;
#else
            wave = FIRST(todo & (A + B)) | (todo & X);
#endif
            socket[r] = wave;
            if :: wave -> printf("relay %d publishes the rows %c%c%c\n", r, SHOWN(wave)) :: else fi
        }
#ifdef OLD_SNAPSHOT
        fi;
#endif
        if
        /* forward.py: _apply, when all of the wave is answered; then the next wave, if there is one and time for it. */
        :: atomic {
#ifdef MARK_BEFORE_CONFIRM
            !ended[r] -> through = wave;
#else
            (confirmed[r] | refused[r] | put_off[r]) == wave ->
            through = through | confirmed[r]; todo = todo & ~confirmed[r];
            do                                   /* a key whose message was not taken waits, with all behind it */
            :: key == 2 -> break
            :: key < 2 ->
                if
                :: refused[r] & OF_KEY(key) -> park = park | (todo & OF_KEY(key) & ~parked); todo = todo & ~OF_KEY(key)
                :: else
                fi;
                key++
            od;
            confirmed[r] = 0; refused[r] = 0; wave = 0; key = 0;
            if
            :: todo && !put_off[r] -> goto publish
            :: !ended[r] -> put_off[r] = 0
            :: ended[r] -> goto turn
            fi;
#endif
            /* forward.py: _record, and COMMIT. */
#ifndef PARK_BEHIND_PENDING
            park = park | (park & (A + B) -> todo & (A + B) & ~parked : 0);     /* outcome.py: wait_behind */
            park = park | (park & X -> todo & X & ~parked : 0);
#endif
            printf("relay %d marks the rows %c%c%c sent, and parks %c%c%c\n", r, SHOWN(through), SHOWN(park));
            if
            :: through & ~arrived -> printf("FALSE SENT: not all of these have arrived\n"); assert(false)
            :: else
            fi;
            pending = pending & ~through & ~park; sent = sent | through; parked = (parked | park) & ~through;
            let_go(r); todo = 0; park = 0; through = 0; wave = 0;
            goto turn
        }
        :: begin_again()
        fi
    fi;
done:
    skip
}

/* A relay's session ends: it was killed, or stopped for longer than the server has patience, or cut off. */
proctype fault(byte r) {
    atomic { ended[r] = true; let_go(r); printf("the session of relay %d ends\n", r) }
}

init {
    atomic {
        run writer(A, B); run writer(X, X); run broker(); run relay(0); run relay(1); run fault(0); run fault(1)
    }
    atomic {
        relays == 0 ->
        if
        :: sent & ~arrived || sent != A + B + X -> printf("LOST: sent are only %c%c%c\n", SHOWN(sent & arrived)); assert(false)
        :: else -> printf("all has arrived, and is sent\n")
        fi
    }
}
