/*
 * The low-water mark: two keys, three events; the relay and the database fail once each.
 *
 * One relay is enough: the marks of two meet in the saved one alone, which is one of them. What becomes of the rows above
 * the mark is left open: any pending row may be settled or parked at any time, as by any number of relays; outbox.pml
 * shows how. Rows are known by their ids, 1 to 3, in the order in which the sequence gave them out; sets of rows are bit
 * masks. Each statement of PostgreSQL is one atomic step, and between two of them anything may happen.
 *
 * Each of these switches takes one rule away, and has to make the check fail:
 *   TIMED_MARK     the mark waits for a time, and not for the writers
 *   HOLDERS_FIRST  the writers are looked up before the sequence
 *   LOWEST_FIRST   the lowest pending row is looked up before the writers
 *   MEMORY_MARK    a new connection goes on from the mark in memory, not from the saved one
 */

#define BIT(id)      (1 << (id))
#define UPTO(id)     (BIT((id) + 1) - 2)         /* the rows 1 to id */
#define FIRST(rows)  ((rows) & (~(rows) + 1))    /* the lowest of these rows, as a set */

/* The table. A row that was drawn and is neither writing nor pending is settled, parked, or was rolled back. */
byte last_value;               /* of the sequence */
byte writing;                  /* the rows of open transactions, which hold RowExclusiveLock */
byte pending;
byte saved_mark;
byte mark;                     /* in the relay's memory */

/* What is on the disk: writers commit with a flush, relays without. */
byte flushed_pending, flushed_mark;

byte busy = 2;                 /* writers */
bool lost;                     /* the relay's session has ended: its next statement fails, and it begins again */

inline flush() {
    flushed_pending = pending; flushed_mark = saved_mark
}

/* A mark above a row that is pending, or may become so, hides it from its relay for good. */
inline check() {
    if
    :: (UPTO(mark) | UPTO(saved_mark)) & (pending | writing) ->
        printf("LOST: below the mark, or the saved one, lies row %d, which is not settled\n",
            (FIRST(pending | writing) == 2 -> 1 : (FIRST(pending | writing) == 4 -> 2 : 3)));
        assert(false)
    :: else
    fi
}

/* A transaction draws its id when it inserts, and commits whenever it likes: keys do not wait for each other. */
proctype writer(byte key; byte events) {
    byte id;
    do
    :: atomic { events == 0 -> busy--; break }
    :: atomic {
        events > 0 ->
        last_value++; id = last_value; events--; writing = writing | BIT(id);
        printf("the writer of key %d draws id %d\n", key, id)
        };
        atomic {
            if
            :: !(writing & BIT(id)) -> printf("the writer of key %d has lost its transaction with row %d\n", key, id)
            :: writing & BIT(id) ->
                pending = pending | BIT(id); writing = writing & ~BIT(id); flush();
                printf("the writer of key %d commits row %d\n", key, id)
            :: writing & BIT(id) ->
                writing = writing & ~BIT(id); printf("the writer of key %d rolls row %d back\n", key, id)
            fi;
            id = 0
        }
    od
}

/* Any relay settles or parks any pending row that its mark does not hide; the commit may or may not reach the disk. */
proctype settle() {
    byte row;
end:
    do
    :: atomic {
        pending ->
        if
        :: row = FIRST(pending)
        :: FIRST(pending & ~FIRST(pending)) -> row = FIRST(pending & ~FIRST(pending))
        fi;
        pending = pending & ~row; row = 0;
        if :: flush() :: skip fi
    }
    od
}

/* forward.py: _move_mark, and mark.py. Each step is a statement of its own. */
proctype relay() {
    byte settled, candidate, holders, last, seen, lowest;
turn:
    if
    :: atomic { busy == 0 && mark == last_value -> goto done }
    :: lost -> goto again
    :: atomic {
        !lost && last_value > mark ->
#ifdef HOLDERS_FIRST
        seen = writing
#else
        last = last_value
#endif
        }
    fi;
#ifdef LOWEST_FIRST
    lowest = FIRST(pending & ~UPTO(mark));
#endif
    atomic {
        if :: lost -> goto again :: else fi;
#ifdef HOLDERS_FIRST
        last = last_value;
#else
        seen = writing;
#endif
#ifdef TIMED_MARK
        seen = 0;
#endif
        if
        :: candidate -> holders = holders & seen; if :: holders == 0 -> settled = candidate; candidate = 0 :: else fi
        :: else
        fi;
        if
        :: candidate == 0 && last > settled && seen -> candidate = last; holders = seen
        :: candidate == 0 && last > settled && !seen -> settled = last
        :: else
        fi;
        last = 0; seen = 0;
        printf("the relay sees that all up to row %d are settled or visible\n", settled);
        if :: settled == mark -> lowest = 0; goto turn :: else fi
    };
    atomic {
        if :: lost -> goto again :: else fi;
#ifndef LOWEST_FIRST
        lowest = FIRST(pending & ~UPTO(mark));
#endif
        lowest = lowest & UPTO(settled);
        mark = (lowest -> (lowest == 2 -> 0 : (lowest == 4 -> 1 : 2)) : settled);
        lowest = 0;
        printf("the relay moves its mark to %d\n", mark);
        check();
        if
        :: mark > saved_mark -> saved_mark = mark; printf("the relay saves its mark\n");
            if :: flush() :: skip fi
        :: skip                                  /* it is saved every few seconds */
        fi;
        goto turn
    };
again:
    atomic {
        lost = false; candidate = 0; holders = 0; last = 0; seen = 0; lowest = 0;
#ifndef MEMORY_MARK
        mark = saved_mark; settled = mark;
#endif
        printf("the relay has a new connection, and goes on from mark %d\n", mark);
        check();
        goto turn
    };
done:
    skip
}

/* The relay is killed, or its session ends. */
proctype fault() {
    lost = true
}

/* The database crashes, and what was committed without a flush is undone. */
proctype crash() {
    atomic {
        pending = flushed_pending; saved_mark = flushed_mark; writing = 0; lost = true;
        printf("the database crashes; its mark is %d, its lowest pending row %d\n", saved_mark,
            (FIRST(pending) == 2 -> 1 : (FIRST(pending) == 4 -> 2 : (FIRST(pending) == 8 -> 3 : 0))))
    }
}

init {
    atomic {
        run writer(0, 2); run writer(1, 1); run settle(); run relay(); run fault(); run crash()
    }
}
