/*
 * Deliver, claim, work, finish, ack: two workers, one order, whose message comes twice; each worker fails once, and the
 * client cancels at some moment.
 *
 * Orders do not meet in the worker, so one is enough. Each statement of PostgreSQL is one atomic step, and between two
 * of them anything may happen. A worker that fails is killed and comes back as a new one, or is stopped: then its
 * deliveries and its lock are taken from it, and it goes on from where it was, with the lock that it takes anew.
 *
 * Each of these switches takes one rule away, and has to make the check fail:
 *   ACK_BEFORE_COMMIT  a delivery is acked when it is taken
 *   WORK_BEFORE_CLAIM  the handler starts before its claim is committed
 *   UNLOCKED_CLAIM     a worker claims though its lock is gone
 *   NO_LIVENESS        an order that is processing is taken over from whoever has it
 *   NO_FENCE           the finish does not look at the attempt
 */

mtype = { placed, processing, done, cancelled };

mtype status = placed;
byte attempts, owner;          /* of the order; a worker's number, or 0 */
byte queue = 2;                /* deliveries that wait: the relay has repeated one */
bool locked[5];                /* by a worker's number: its advisory lock is held */
byte in_hand[2];               /* unacked deliveries */
bool killed[2];
byte starts, faults, ends;

#define TERMINAL     (status == done || status == cancelled)
#define NOTHING_LEFT (queue == 0 && in_hand[0] == 0 && in_hand[1] == 0)

inline ack() {
    in_hand[w] = (in_hand[w] -> in_hand[w] - 1 : 0)  /* what was taken from us meanwhile is acked in vain */
}

inline claim() {
    attempts++; owner = number; mine = attempts;
    printf("worker %d claims the order, attempt %d\n", number, mine)
}

proctype worker(byte w) {
    byte number = w + 1;
    byte mine, whose, seen;
turn:
    {
        if
        :: NOTHING_LEFT -> goto over
        :: atomic { queue -> queue--; in_hand[w]++; printf("worker %d takes a delivery\n", number)
#ifdef ACK_BEFORE_COMMIT
            ; ack()
#endif
        }
        fi;
#ifdef WORK_BEFORE_CLAIM
        atomic {
            if
            :: TERMINAL -> goto answer
            :: else -> starts++; printf("worker %d starts the handler\n", number)
            fi
        };
#endif
look:
        /* claim_orders.py: CLAIM, LOOK, TAKE_OVER; a claim without a lock would look like that of a dead worker. */
        atomic {
#ifndef UNLOCKED_CLAIM
            locked[number] ->
#endif
            if
            :: status == placed -> status = processing; claim(); goto work
            :: status == processing && owner == number -> claim(); goto work
            :: TERMINAL -> printf("worker %d finds the order ended\n", number); goto answer
#ifdef NO_LIVENESS
            :: status == processing && owner != number -> whose = owner; seen = attempts
#else
            :: status == processing && owner != number && !locked[owner] -> whose = owner; seen = attempts
#endif
            fi
        };
        atomic {
#ifndef UNLOCKED_CLAIM
            locked[number] ->
#endif
            if
            :: status == processing && owner == whose && attempts == seen -> whose = 0; seen = 0; claim()
            :: else -> whose = 0; seen = 0; goto look
            fi
        };
work:
#ifndef WORK_BEFORE_CLAIM
        atomic { starts++; printf("worker %d starts the handler\n", number) };
#endif
        /* finish_orders.py. */
        atomic {
            if
#ifdef NO_FENCE
            :: status == processing ->
#else
            :: status == processing && attempts == mine ->
#endif
                if
                :: attempts != mine -> printf("ZOMBIE: attempt %d ends the order under attempt %d\n", mine, attempts); assert(false)
                :: else
                fi;
                status = done; ends++; printf("worker %d finishes the order\n", number)
            :: else -> printf("worker %d is too late\n", number)
            fi;
            mine = 0
        };
answer:
#ifndef ACK_BEFORE_COMMIT
        atomic { ack(); printf("worker %d acks\n", number) };
#endif
        goto turn
    } unless {
        atomic {
            killed[w] -> killed[w] = false;
            number = w + 3; locked[number] = true; mine = 0; whose = 0; seen = 0;
            printf("worker %d begins\n", number);
            goto turn
        }
    };
over:
    skip
}

proctype fault(byte w) {
    if :: goto over :: skip fi;
    atomic {
        faults++; queue = queue + in_hand[w]; in_hand[w] = 0; locked[w + 1] = false;
        if
        :: killed[w] = true; printf("worker %d is killed\n", w + 1); goto over
        :: printf("worker %d is stopped, and loses its lock and its deliveries\n", w + 1)
        fi
    };
    locked[w + 1] = true;
over:
    skip
}

proctype client() {
    atomic { if :: status == placed -> status = cancelled; printf("the client cancels the order\n") :: else fi }
}

init {
    atomic {
        locked[1] = true; locked[2] = true;
        run worker(0); run worker(1); run fault(0); run fault(1); run client()
    };
    atomic {
        NOTHING_LEFT && _nr_pr == 1 ->
        if
        :: !TERMINAL -> printf("LOST: nobody works the order any more\n"); assert(false)
        :: status == cancelled && starts -> printf("CHARGED: the order is cancelled, and its handler has run\n"); assert(false)
        :: starts > 1 + faults -> printf("DOUBLED: %d handlers started, and %d workers failed\n", starts, faults); assert(false)
        :: ends > 1 -> printf("DOUBLED: the order ended twice\n"); assert(false)
        :: else
        fi
    }
}
