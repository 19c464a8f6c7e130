/* What the compiler is told of branches on the way of each message. */
#ifndef HYDROGEN_EXPECT_H
#define HYDROGEN_EXPECT_H

/* `condition`, which seldom holds: what follows from it is kept out of the way of what happens
 * else. */
static inline int expect_seldom(int condition) { return __builtin_expect(condition != 0, 0); }

#endif
